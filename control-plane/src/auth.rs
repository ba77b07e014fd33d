//! Who is asking: passwords become tokens ([`Auth::log_in`]), tokens become accounts
//! ([`Auth::account`]). An unknown email costs a client as much time as a wrong password.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mogok_api::id::TokenId;
use sha2::{Digest as _, Sha256};

use crate::store::users::{CreateUserError, User};
use crate::store::{Store, StoreError};

pub mod email;
mod password;
mod throttle;

pub use email::{Email, InvalidEmail};
use password::Hasher;
pub use password::{InvalidPassword, Password, PasswordError};
use throttle::Throttle;

/// What every token begins with, so that people and secret scanners recognise one.
const TOKEN_PREFIX: &str = "mogok_";

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the email or the password is wrong")]
    Wrong,
    #[error("too many failed logins for {email}")]
    Throttled { email: String, wait_minutes: u64 },
    #[error("an account with the email {email} exists")]
    Taken { email: String },
    #[error("too many people log in at once")]
    Busy,
    #[error(transparent)]
    Password(PasswordError),
    #[error("cannot get random bytes")]
    Random(#[source] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<PasswordError> for AuthError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::Busy,
            other => Self::Password(other),
        }
    }
}

/// A new token; its secret exists nowhere else.
pub struct NewToken {
    pub user: User,
    pub id: TokenId,
    pub secret: String,
}

/// The gatekeeper; cheap to clone.
#[derive(Debug, Clone)]
pub struct Auth {
    store: Store,
    hasher: Hasher,
    throttle: Arc<Throttle>,
}

impl Auth {
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, hasher: Hasher::default(), throttle: Arc::default() }
    }

    /// Makes an account and its first token.
    ///
    /// # Errors
    /// [`AuthError::Taken`] when the email has an account.
    pub async fn sign_up(&self, email: &Email, password: Password) -> Result<NewToken, AuthError> {
        let hash = self.hasher.hash(password).await?;
        let user = self.store.create_user(email.as_str(), &hash).await.map_err(|error| match error {
            CreateUserError::Taken => AuthError::Taken { email: email.to_string() },
            CreateUserError::Store(error) => error.into(),
        })?;
        self.token(user).await
    }

    /// Makes a token for the account of an email, when the password is right. `from` is the address of who asks.
    ///
    /// # Errors
    /// [`AuthError::Wrong`] or [`AuthError::Throttled`].
    pub async fn log_in(
        &self,
        email: &Email,
        password: Password,
        from: IpAddr,
    ) -> Result<NewToken, AuthError> {
        // The attempt is counted before it is made: many at once are as many as one after the other.
        if let Err(wait_minutes) = self.throttle.attempt(email.as_str(), from) {
            return Err(AuthError::Throttled { email: email.to_string(), wait_minutes });
        }
        let known = self.store.user_by_email(email.as_str()).await?;
        let (user, hash) = known.map_or((None, None), |(user, hash)| (Some(user), Some(hash)));
        let right = self.hasher.verify(password, hash).await?;
        let user = user.filter(|_| right).ok_or(AuthError::Wrong)?;
        self.throttle.forget(email.as_str(), from);
        self.token(user).await
    }

    /// The account and the token that a secret stands for.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn account(&self, secret: &str) -> Result<Option<(User, TokenId)>, StoreError> {
        if !secret.starts_with(TOKEN_PREFIX) || secret.len() > 128 {
            return Ok(None);
        }
        self.store.use_token(&fingerprint(secret)).await
    }

    async fn token(&self, user: User) -> Result<NewToken, AuthError> {
        let secret = format!("{TOKEN_PREFIX}{}", random_text::<32>().map_err(AuthError::Random)?);
        let id = self.store.create_token(user.id, &fingerprint(&secret)).await?;
        Ok(NewToken { user, id, secret })
    }
}

/// `BYTES` random bytes from the kernel, as base64url.
pub(crate) fn random_text<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// What the store keeps of a token.
fn fingerprint(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn auth() -> (tempfile::TempDir, Auth) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Store::sqlite_url(&dir.path().join("db"))).await.unwrap();
        (dir, Auth::new(store))
    }

    fn password(text: &str) -> Password {
        Password::parse(text.to_owned()).unwrap()
    }

    #[tokio::test]
    async fn a_token_signs_in_until_it_is_revoked_and_the_store_has_no_secret() {
        let (_dir, auth) = auth().await;
        let email: Email = "Dev@Example.com".parse().unwrap();
        let new = auth.sign_up(&email, password("correct horse")).await.unwrap();
        assert!(new.secret.starts_with("mogok_") && new.secret.len() == 6 + 43, "{}", new.secret.len());
        let (user, id) = auth.account(&new.secret).await.unwrap().unwrap();
        assert_eq!((user.email.as_str(), id), ("dev@example.com", new.id));
        assert!(auth.account(&format!("{}x", new.secret)).await.unwrap().is_none());
        assert!(auth.account(&fingerprint(&new.secret)).await.unwrap().is_none());
        assert!(auth.store.revoke_token(user.id, id).await.unwrap());
        assert!(auth.account(&new.secret).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn failed_logins_are_slowed_down_by_email_and_unknown_ones_alike() {
        let (_dir, auth) = auth().await;
        let known: Email = "dev@example.com".parse().unwrap();
        auth.sign_up(&known, password("correct horse")).await.unwrap();
        for email in [known.clone(), "nobody@example.com".parse().unwrap()] {
            let mut refused = None;
            for attempt in 1..=11 {
                match auth.log_in(&email, password("wrong horse"), HERE).await.err().unwrap() {
                    AuthError::Wrong => {}
                    AuthError::Throttled { .. } => {
                        refused = Some(attempt);
                        break;
                    }
                    other => panic!("{other}"),
                }
            }
            assert_eq!(refused, Some(11), "{email}");
        }
        assert!(matches!(
            auth.log_in(&known, password("correct horse"), HERE).await,
            Err(AuthError::Throttled { .. })
        ));
    }
}
