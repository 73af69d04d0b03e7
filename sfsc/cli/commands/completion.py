"""`sfsc completion`: the script that completes commands and names in a shell."""

from __future__ import annotations

import click

from sfsc.cli import terminal


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete commands, options, users and names in the store.

    bash: put `eval "$(sfsc completion bash)"` into ~/.bashrc. zsh: put `eval "$(sfsc completion
    zsh)"` into ~/.zshrc, after compinit. fish: run `sfsc completion fish >
    ~/.config/fish/completions/sfsc.fish`.

    Names are completed folder by folder, from what this machine remembers; the server is not asked.
    They are encrypted under a key from your keyring. If the keyring has a passphrase, names are
    completed only while the agent holds the key (`sfsc agent start`).

    Example: sfsc completion bash
    """
    from sfsc.cli.completion import script

    terminal.write(script(ctx.find_root().command, shell))
