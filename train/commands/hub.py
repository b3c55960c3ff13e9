"""The commands ``clipocr push`` and ``clipocr pull``: a student on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from ...shared.options import FILE, NEW_PATH, PATH
from ...shared.terminal import folder_size


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@click.argument("repo", metavar="OWNER/NAME")
@click.option(
    "--eval-json",
    "figures_path",
    type=FILE,
    show_default="eval.json beside the checkpoint",
    help="Figures for the model card, as clipocr eval wrote them.",
)
@click.option(
    "--license", "license_id", show_default="none", help="License for the card, such as apache-2.0."
)
@click.option(
    "--public", is_flag=True, help="If the repository is new, make it public instead of private."
)
def push(
    run_or_checkpoint: Path,
    repo: str,
    figures_path: Path | None,
    license_id: str | None,
    public: bool,
) -> None:
    """Upload a student to the Hugging Face hub, with a model card.

    This uploads the weights as safetensors, run.json and eval.json without the names of local
    folders, and a card made from them. The training state stays here.

    \b
    Example:
      clipocr push run someone/word-reader --license apache-2.0
    """
    from ..deploy.hub import push as push_student

    address = push_student(
        run_or_checkpoint, repo, figures_path=figures_path, license_id=license_id, public=public
    )
    click.echo(f"Wrote {address}: {run_or_checkpoint} as {repo}.")


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("out", metavar="FOLDER", type=NEW_PATH)
@click.option("--revision", show_default="the newest", help="Branch, tag or commit to download.")
def pull(repo: str, out: Path, revision: str | None) -> None:
    """Download a student from the Hugging Face hub.

    FOLDER can then be given to eval, read and export like a run.

    \b
    Example:
      clipocr pull someone/word-reader model
      clipocr read model word.png
    """
    from ..deploy.hub import pull as pull_student

    names = pull_student(repo, out, revision=revision)
    click.echo(f"Wrote {out}: {', '.join(names)} of {repo}, {folder_size(out)}.")
