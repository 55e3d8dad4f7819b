//! `commitfs completions`: what a shell needs to complete command lines.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Failure, exit, output};

/// Arguments of `commitfs completions`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Where they go, for one user (in bash, with the package bash-completion):
  bash  ~/.local/share/bash-completion/completions/commitfs
  zsh   _commitfs in a directory of $fpath
  fish  ~/.config/fish/completions/commitfs.fish")]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut program = super::Arguments::command();
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, "commitfs", &mut text);
    output::print(text)?;
    Ok(exit::OK)
}
