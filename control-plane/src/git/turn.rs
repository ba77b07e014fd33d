//! How many transfers run at once: in all, and of one account, so that a slow pusher takes no more than
//! its own share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mogok_api::id::UserId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Transfers at once.
const TRANSFERS: usize = 24;
/// Transfers of one account at once.
const PER_USER: usize = 4;
/// How long a transfer waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// Why a transfer may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// The account has its share under way.
    Account,
    /// The platform has all it can take under way.
    Platform,
}

#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    users: Mutex<HashMap<UserId, usize>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(TRANSFERS)), users: Mutex::default() }
    }
}

/// The right to one transfer, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    user: UserId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) async fn take(self: &Arc<Self>, user: UserId) -> Result<Turn, NoTurn> {
        {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let count = users.entry(user).or_default();
            if *count >= PER_USER {
                return Err(NoTurn::Account);
            }
            *count += 1;
        }
        let mut turn = Turn { turns: Arc::clone(self), user, permit: None };
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.all).acquire_owned()).await;
        turn.permit = Some(permit.map_err(|_| NoTurn::Platform)?.map_err(|_| NoTurn::Platform)?);
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit.take();
        let mut users = self.turns.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_account_takes_its_share_and_gives_it_back() {
        let turns = Arc::new(Turns::default());
        let (one, two) = (UserId::new(), UserId::new());
        let mut held = Vec::new();
        for _ in 0..PER_USER {
            held.push(turns.take(one).await.unwrap());
        }
        assert_eq!(turns.take(one).await.unwrap_err(), NoTurn::Account);
        turns.take(two).await.unwrap();
        held.pop();
        held.push(turns.take(one).await.unwrap());
        held.clear();
        assert!(turns.users.lock().unwrap().is_empty());
    }
}
