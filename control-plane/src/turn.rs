//! How many long requests (git transfers, followed logs) run at once: in all, and of one account, so that
//! a slow or greedy one takes no more than its own share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mogok_api::id::UserId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// Why a request may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// The account has its share under way.
    Account,
    /// The platform has all it can take under way.
    Platform,
}

/// The turns of one kind of request.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    per_user: usize,
    users: Mutex<HashMap<UserId, usize>>,
}

/// The right to one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    user: UserId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// As many as `all` at once, and `per_user` of one account.
    pub(crate) fn new(all: usize, per_user: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_user, users: Mutex::default() }
    }

    pub(crate) async fn take(self: &Arc<Self>, user: UserId) -> Result<Turn, NoTurn> {
        {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let count = users.entry(user).or_default();
            if *count >= self.per_user {
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
        let turns = Arc::new(Turns::new(8, 2));
        let (one, two) = (UserId::new(), UserId::new());
        let mut held = Vec::new();
        for _ in 0..2 {
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
