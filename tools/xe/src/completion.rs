//! Completion scripts. They ask the server for everything, through `xe` itself.

/// Returns the script for a shell.
pub(crate) fn script(shell: &str) -> Option<&'static str> {
    match shell {
        "bash" => Some(include_str!("completion/xe.bash")),
        "zsh" => Some(include_str!("completion/xe.zsh")),
        "fish" => Some(include_str!("completion/xe.fish")),
        _ => None,
    }
}
