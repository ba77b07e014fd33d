//! Reading a commit without ever checking it out: which commit a reference means, its files, its
//! archive. Everything has a cap; what the tenant's tree holds is data.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::GitError;
use super::commit::{Commit, Reference};
use super::process::{Git, Output, message};
use super::repository::{QUICK, Repository};

/// How long an archive may take.
const ARCHIVE_TIME: Duration = Duration::from_secs(5 * 60);
/// Bytes of a short answer.
const SHORT: u64 = 64 * 1024;

impl Repository {
    fn failed(&self, operation: &'static str, output: Output) -> GitError {
        let path: PathBuf = self.path.clone();
        GitError::Failed { operation, path, message: output.message }
    }

    /// The commit that a full name means, if there is one.
    async fn commit(&self, name: &str) -> Result<Option<Commit>, GitError> {
        let peeled = format!("{name}^{{commit}}");
        let found = Git::new(&self.path, "rev-parse")
            .args(["--quiet", "--verify", "--end-of-options", &peeled])
            .output(SHORT, QUICK)
            .await?;
        if !found.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&found.bytes);
        // `--end-of-options` is echoed by some versions of git.
        let hash = text.lines().last().unwrap_or_default();
        let unexpected = |_| GitError::Unexpected { operation: "rev-parse", text: hash.to_owned() };
        hash.parse().map(Some).map_err(unexpected)
    }

    /// The commit of a branch, a tag, or a hash (in this order), if there is one.
    ///
    /// # Errors
    /// When git fails.
    pub async fn resolve(&self, reference: &Reference) -> Result<Option<Commit>, GitError> {
        for prefix in ["refs/heads/", "refs/tags/"] {
            if let Some(commit) = self.commit(&format!("{prefix}{reference}")).await? {
                return Ok(Some(commit));
            }
        }
        if reference.is_hash() { self.commit(reference.as_str()).await } else { Ok(None) }
    }

    /// What is built without a reference: the branch of HEAD, or `master`, or `main`, or the only one.
    ///
    /// # Errors
    /// When git fails.
    pub async fn default_commit(&self) -> Result<Option<Commit>, GitError> {
        for name in ["HEAD", "refs/heads/master", "refs/heads/main"] {
            if let Some(commit) = self.commit(name).await? {
                return Ok(Some(commit));
            }
        }
        let branches = Git::new(&self.path, "for-each-ref")
            .args(["--count=2", "--format=%(refname)", "refs/heads"])
            .output(SHORT, QUICK)
            .await?;
        if !branches.status.success() {
            return Err(self.failed("for-each-ref", branches));
        }
        let text = String::from_utf8_lossy(&branches.bytes);
        match text.lines().collect::<Vec<_>>().as_slice() {
            [only] => self.commit(only).await,
            _ => Ok(None),
        }
    }

    /// Keeps a commit readable for good, whatever is pushed later: what is built must stay.
    ///
    /// # Errors
    /// When git fails.
    pub async fn keep(&self, commit: &Commit) -> Result<(), GitError> {
        let name = format!("refs/mogok/kept/{commit}");
        let kept = Git::new(&self.path, "update-ref")
            .args([name.as_str(), commit.as_str()])
            .output(SHORT, QUICK)
            .await?;
        if kept.status.success() { Ok(()) } else { Err(self.failed("update-ref", kept)) }
    }

    /// Writes the commit's tree as a tar archive (`git archive --format=tar`); returns its bytes.
    ///
    /// # Errors
    /// [`GitError::TooLarge`] when it has more than `cap` bytes; what was written until then is to be
    /// dropped.
    pub async fn archive(
        &self,
        commit: &Commit,
        writer: &mut (impl AsyncWrite + Unpin),
        cap: u64,
    ) -> Result<u64, GitError> {
        let operation = "archive";
        let mut running = Git::new(&self.path, operation).args(["--format=tar", commit.as_str()]).spawn()?;
        let (stdout, stderr) = (running.take_stdout(), running.take_stderr());
        let work = async {
            let copy = async {
                let Some(stdout) = stdout else { return Ok(0) };
                let copied = tokio::io::copy(&mut stdout.take(cap + 1), writer).await;
                let bytes = copied.map_err(GitError::io("write the archive of", &self.path))?;
                if bytes > cap {
                    return Err(GitError::TooLarge { operation, limit: cap });
                }
                Ok(bytes)
            };
            let (copied, message) = tokio::join!(copy, message(stderr));
            let bytes = copied?;
            writer.flush().await.map_err(GitError::io("write the archive of", &self.path))?;
            let status = running.wait().await?;
            if status.success() {
                return Ok(bytes);
            }
            Err(GitError::Failed { operation, path: self.path.clone(), message })
        };
        let limit = ARCHIVE_TIME;
        tokio::time::timeout(limit, work).await.map_err(|_| GitError::Timeout { operation, limit })?
    }

    /// The content of a regular file at `path` (relative to the top), or nothing where there is no such
    /// path.
    ///
    /// # Errors
    /// [`GitError::NotAFile`] for a directory, a symbolic link or a submodule; [`GitError::TooLarge`].
    pub async fn read_file(
        &self,
        commit: &Commit,
        path: &str,
        cap: u64,
    ) -> Result<Option<Vec<u8>>, GitError> {
        let listed = Git::new(&self.path, "ls-tree")
            .args(["-z", commit.as_str(), "--", path])
            .output(SHORT, QUICK)
            .await?;
        if !listed.status.success() {
            return Err(self.failed("ls-tree", listed));
        }
        // `<mode> <type> <hash>\t<path>\0`
        let text = String::from_utf8_lossy(&listed.bytes);
        let Some(entry) = text.split('\0').find(|entry| !entry.is_empty()) else { return Ok(None) };
        let fields: Vec<&str> = entry.split([' ', '\t']).collect();
        let (mode, hash) = match fields.as_slice() {
            [mode, "blob", hash, ..] => (*mode, *hash),
            _ => return Err(GitError::NotAFile { path: path.to_owned() }),
        };
        if !mode.starts_with("100") {
            return Err(GitError::NotAFile { path: path.to_owned() });
        }
        let file = Git::new(&self.path, "cat-file").args(["blob", hash]).output(cap, QUICK).await?;
        if file.status.success() { Ok(Some(file.bytes)) } else { Err(self.failed("cat-file", file)) }
    }
}
