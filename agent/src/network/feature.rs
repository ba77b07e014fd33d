//! What the rules need of the kernel beyond plain nftables, asked one by one, so that what is missing has
//! a name.
//!
//! Invariant: asking changes nothing. `nft -c` has the kernel check a transaction and then abort it.

use super::{NetworkError, nft};

/// One expression of nf_tables that may be a module of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    remedy: &'static str,
    /// Members of a table that cannot be made without it.
    script: &'static str,
}

/// All of them.
pub const FEATURES: [Feature; 2] = [
    Feature {
        name: "bandwidth cap",
        remedy: "the kernel has no nft_limit (CONFIG_NFT_LIMIT) or cannot keep one in each element of a set that rules add to",
        script: "set s { type ipv4_addr; size 16; flags dynamic,timeout; timeout 1m; }
                 chain c { update @s { ip saddr limit rate over 1000000 bytes/second burst 65536 bytes } drop; }",
    },
    Feature {
        name: "connection cap",
        remedy: "the kernel has no nft_connlimit (CONFIG_NFT_CONNLIMIT)",
        script: "set s { type ipv4_addr; size 16; flags dynamic; }
                 chain c { ct state new add @s { ip saddr ct count over 1 } drop; }",
    },
];

impl Feature {
    /// # Errors
    /// Why it is not there, with the remedy.
    pub async fn ask(self) -> Result<(), NetworkError> {
        self.ask_with(self.script).await
    }

    async fn ask_with(self, script: &str) -> Result<(), NetworkError> {
        let script = format!("table inet mogok_question {{\n{script}\n}}\n");
        match nft::check(self.name, &script).await {
            Err(NetworkError::Nft { message, .. }) => {
                Err(NetworkError::MissingFeature { name: self.name, remedy: self.remedy, message })
            }
            other => other,
        }
    }
}

/// The first that is missing; for after a table could not be made.
pub(super) async fn missing() -> Option<NetworkError> {
    for feature in FEATURES {
        if let Err(error @ NetworkError::MissingFeature { .. }) = feature.ask().await {
            return Some(error);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_named_and_asking_leaves_nothing() {
        let thread = std::thread::spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("SKIP: a network namespace needs root");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for feature in FEATURES {
                    feature.ask().await.unwrap();
                    // A flowtable over a link that is not there stands for what the kernel refuses.
                    let refused = "flowtable f { hook ingress priority 0; devices = { nothing0 }; }";
                    let error = feature.ask_with(refused).await.unwrap_err().to_string();
                    assert!(error.starts_with(feature.name) && error.contains(feature.remedy), "{error}");
                }
                assert!(missing().await.is_none());
                let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
                assert!(tables.stdout.is_empty());
            });
        });
        thread.join().unwrap();
    }
}
