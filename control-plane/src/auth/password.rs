//! Passwords and their argon2id hashes. Hashing costs 19 MiB and tens of milliseconds by design, so it
//! runs on blocking threads, a few at once, and a queue that grows too long is refused.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

/// Hashes computed at once.
const CONCURRENT: usize = 2;
/// How long a login waits for its turn.
const TURN: Duration = Duration::from_secs(5);

/// A hash that no password has, verified for unknown users so that they cost the same time.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| {
    let hash = Argon2::default().hash_password(b"").ok()?;
    Some(hash.to_string())
});

/// A password of 8 to 256 bytes.
pub struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A password that breaks the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the password has {0} bytes: use 8 to 256")]
pub struct InvalidPassword(usize);

impl Password {
    /// # Errors
    /// When it is too short or too long.
    pub fn parse(text: String) -> Result<Self, InvalidPassword> {
        if (8..=256).contains(&text.len()) { Ok(Self(text)) } else { Err(InvalidPassword(text.len())) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("too many passwords are being checked")]
    Busy,
    #[error("cannot hash a password: {0}")]
    Hash(argon2::password_hash::Error),
    #[error("the password hasher stopped")]
    Stopped,
}

/// Hashes and verifies; clones share the bound.
#[derive(Debug, Clone)]
pub(super) struct Hasher {
    turns: Arc<Semaphore>,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(CONCURRENT)) }
    }
}

impl Hasher {
    /// The hash of a password in PHC string format, with a random salt.
    pub(super) async fn hash(&self, password: Password) -> Result<String, PasswordError> {
        self.run(move || {
            let hash = Argon2::default().hash_password(password.0.as_bytes()).map_err(PasswordError::Hash)?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Is it the password of this hash? Takes as long without a hash, and says no.
    pub(super) async fn verify(
        &self,
        password: Password,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        self.run(move || {
            let known = hash.is_some();
            let Some(hash) = hash.or_else(|| NOBODY.clone()) else { return Ok(false) };
            let hash = PasswordHash::new(&hash).map_err(|_| PasswordError::Stopped)?;
            let right = Argon2::default().verify_password(password.0.as_bytes(), &hash).is_ok();
            Ok(right && known)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let turn = tokio::time::timeout(TURN, Arc::clone(&self.turns).acquire_owned());
        let turn = turn.await.map_err(|_| PasswordError::Busy)?.map_err(|_| PasswordError::Stopped)?;
        // The turn goes with the work: a client that hangs up does not make room for one more thread.
        let work = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        work.await.map_err(|_| PasswordError::Stopped)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hashes_are_argon2id_and_salted_and_verify() {
        let hasher = Hasher::default();
        let password = || Password::parse("correct horse".to_owned()).unwrap();
        let one = hasher.hash(password()).await.unwrap();
        let two = hasher.hash(password()).await.unwrap();
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, two);
        assert!(hasher.verify(password(), Some(one.clone())).await.unwrap());
        let wrong = Password::parse("wrong horse".to_owned()).unwrap();
        assert!(!hasher.verify(wrong, Some(one)).await.unwrap());
        assert!(!hasher.verify(password(), None).await.unwrap());
    }

    #[test]
    fn short_and_endless_passwords_are_refused() {
        assert!(Password::parse("1234567".to_owned()).is_err());
        assert!(Password::parse("x".repeat(257)).is_err());
    }
}
