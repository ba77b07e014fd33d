//! Wake-ups between the parts of the control plane: "look again", never data.
//!
//! Who changes the store wakes whoever must act on it; the woken one reads everything afresh, so the
//! path after a crash is the path of every day. A wake-up that comes while its listener works is
//! kept, any number of them count as one, and each listener gets its own.

use tokio::sync::watch;

/// One kind of wake-up, with any number of wakers and listeners.
#[derive(Debug, Clone)]
pub struct Signal(watch::Sender<()>);

impl Default for Signal {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl Signal {
    /// Makes every listener look again; never waits, and costs nothing when nobody listens.
    pub fn wake(&self) {
        self.0.send_replace(());
    }

    /// A listener that has seen nothing yet: its first [`Listener::woken`] returns at once, so that a
    /// loop `listen, woken, work` also does the work that was there before it started.
    #[must_use]
    pub fn listen(&self) -> Listener {
        let mut receiver = self.0.subscribe();
        receiver.mark_changed();
        Listener { receiver, _signal: self.clone() }
    }
}

/// The receiving side of a [`Signal`].
#[derive(Debug)]
pub struct Listener {
    receiver: watch::Receiver<()>,
    // Holds the channel open: a closed one would turn every wait into a busy loop.
    _signal: Signal,
}

impl Listener {
    /// Waits until there was a wake-up since the last call. Cancel-safe: a wait that is dropped loses none.
    pub async fn woken(&mut self) {
        // It fails only when every sender is gone, and this listener holds one.
        let _ = self.receiver.changed().await;
    }
}

/// The wake-ups of the control plane; cheap to clone, clones share them.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    /// Something wanted of an app changed, or something seen of a container or router: reconcile.
    pub reconcile: Signal,
    /// A build was requested, cancelled, or its container changed.
    pub builds: Signal,
    /// The routing table may be different.
    pub routes: Signal,
    /// What is wanted of a node may be different: instances, or the spec of a running build.
    pub nodes: Signal,
    /// A row of `deploys` changed: for those who wait for its end.
    pub deploys: Signal,
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn wake_ups_are_kept_merged_and_seen_by_each_listener() {
        let signal = Signal::default();
        let (mut one, mut two) = (signal.listen(), signal.listen());
        assert!(one.woken().now_or_never().is_some(), "the first look is free");
        assert!(one.woken().now_or_never().is_none());
        signal.wake();
        signal.wake();
        assert!(one.woken().now_or_never().is_some());
        assert!(one.woken().now_or_never().is_none(), "two wake-ups count as one");
        assert!(two.woken().now_or_never().is_some());
        drop(signal);
        assert!(one.woken().now_or_never().is_none(), "no busy loop once the wakers are gone");
    }
}
