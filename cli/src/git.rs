//! What the command reads from and writes to the developer's git repository, by git itself.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use mogok_api::name::AppName;

/// The name of the remote that points to the platform.
pub(crate) const REMOTE: &str = "mogok";

fn git(args: &[&str]) -> Result<Option<String>> {
    let output = Command::new("git")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run git: install it and make sure it is in PATH")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

fn git_checked(args: &[&str]) -> Result<()> {
    git(args)?.map(drop).with_context(|| format!("git {} failed", args.join(" ")))
}

pub(crate) fn in_repository() -> Result<bool> {
    Ok(git(&["rev-parse", "--git-dir"])?.is_some())
}

/// The URL of the remote `mogok`, when there is one.
pub(crate) fn remote_url() -> Option<String> {
    git(&["config", "--get", &format!("remote.{REMOTE}.url")]).ok().flatten()
}

/// The commit checked out here.
pub(crate) fn head() -> Option<String> {
    git(&["rev-parse", "--verify", "--quiet", "HEAD"]).ok().flatten()
}

/// What to give to `git push mogok` so that the branch checked out here becomes the one that is built.
pub(crate) fn to_push() -> String {
    match git(&["symbolic-ref", "--quiet", "--short", "HEAD"]).ok().flatten() {
        Some(branch) => branch_word(&branch),
        None if head().is_some() => "HEAD:refs/heads/master".to_owned(),
        None => "master".to_owned(),
    }
}

/// A branch as a word for a shell.
fn branch_word(branch: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./+@".contains(&b);
    if branch.bytes().all(plain) { branch.to_owned() } else { shell_quoted(branch) }
}

/// The app of a remote URL: the last path component without `.git`.
pub(crate) fn app_of(url: &str) -> Result<AppName> {
    let last = url.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    last.strip_suffix(".git")
        .unwrap_or(last)
        .parse()
        .with_context(|| format!("the git remote '{REMOTE}' ({url}) does not name an app"))
}

/// Adds the remote and a credential helper for its server, in this repository only.
pub(crate) fn add_remote(git_base: &str, app: &AppName) -> Result<()> {
    check_remote(git_base, app)?;
    if remote_url().is_none() {
        git_checked(&["remote", "add", REMOTE, &url(git_base, app)])?;
    }
    let executable = std::env::current_exe().context("cannot find my own path")?;
    let helper = format!("!{} git-credential", shell_quoted(&executable.to_string_lossy()));
    let key = format!("credential.{}.helper", git_base.trim_end_matches('/'));
    // The empty value drops the helpers of other configuration files, which must not store this token.
    git_checked(&["config", "--replace-all", &key, ""])?;
    git_checked(&["config", "--add", &key, &helper])
}

/// Is the remote free, or the app's already?
///
/// # Errors
/// When it leads elsewhere.
pub(crate) fn check_remote(git_base: &str, app: &AppName) -> Result<()> {
    match remote_url() {
        Some(existing) if existing != url(git_base, app) => bail!(
            "this repository already has a remote '{REMOTE}' ({existing}): \
             run 'git remote remove {REMOTE}', then this again"
        ),
        _ => Ok(()),
    }
}

fn url(git_base: &str, app: &AppName) -> String {
    format!("{}/{app}.git", git_base.trim_end_matches('/'))
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_is_the_last_part_of_the_remote() {
        assert_eq!(app_of("http://git.mogok.localhost:8080/fugafuga.git").unwrap().as_str(), "fugafuga");
        assert_eq!(app_of("http://git.mogok.localhost/fugafuga/").unwrap().as_str(), "fugafuga");
        assert!(app_of("http://git.mogok.localhost/").is_err());
    }

    #[test]
    fn a_branch_is_named_as_a_shell_takes_it() {
        for plain in ["master", "main", "feature/x-1.2"] {
            assert_eq!(branch_word(plain), plain);
        }
        assert_eq!(branch_word("it's&me"), r"'it'\''s&me'");
    }

    #[test]
    fn paths_survive_the_shell() {
        assert_eq!(shell_quoted("/it's here/mogok"), r"'/it'\''s here/mogok'");
    }
}
