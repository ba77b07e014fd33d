//! The one registry of typed ids. Each is a UUID (version 7, so it sorts by creation time) that
//! cannot be mistaken for another kind of id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// An id that is not a UUID.
#[derive(Debug, Clone, thiserror::Error)]
#[error("invalid {kind} id {text:?}: expected a UUID")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, format = "uuid")]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, greater than those made before it.
            #[must_use]
            #[allow(clippy::new_without_default, reason = "each call makes a different id")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| InvalidId { kind: $kind, text: text.chars().take(64).collect() })
            }
        }
    )*};
}

ids! {
    /// An account.
    UserId = "user";
    /// An access token of an account (its id, not its secret).
    TokenId = "token";
    /// An application.
    AppId = "app";
    /// One run of `mogok build`.
    BuildId = "build";
    /// A release row (people see its number, [`crate::name::ReleaseNumber`]).
    ReleaseId = "release";
    /// One attempt to bring an app to a release and a formation.
    DeployId = "deploy";
    /// One container that the control plane wants on a node.
    InstanceId = "instance";
    /// An app server.
    NodeId = "node";
    /// A router process.
    RouterId = "router";
    /// The life of one sender of state: versions count within it, and a new epoch begins with a snapshot.
    Epoch = "epoch";
}
