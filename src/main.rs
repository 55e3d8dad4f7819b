//! The program `commitfs`; see [`commitfs::cli`].

fn main() -> std::process::ExitCode {
    commitfs::cli::main()
}
