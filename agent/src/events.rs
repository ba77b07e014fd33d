//! What happened to instances, as a numbered stream: whoever read up to a number goes on behind it,
//! and who was away too long gets the whole state first.
//!
//! Invariant: applying the events behind a number to the state at that number gives the state now.
//! Numbers start at the microsecond the agent started, so those of an earlier agent are never taken
//! for this one's.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use mogok_api::agent::AgentEvent;
use mogok_api::id::InstanceId;
use mogok_api::instance::{InstanceStatus, Warning};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Events that are kept for readers that lag.
const KEPT: usize = 2048;
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Seen {
    seq: u64,
    statuses: BTreeMap<InstanceId, InstanceStatus>,
    /// The last events; the last one has number `seq`.
    events: VecDeque<Arc<AgentEvent>>,
}

/// The node's instances as they are, and their changes.
#[derive(Debug)]
pub struct Events {
    seen: watch::Sender<Seen>,
}

impl Default for Events {
    fn default() -> Self {
        let seq = u64::try_from(Utc::now().timestamp_micros()).unwrap_or(0);
        let seen = Seen { seq, statuses: BTreeMap::new(), events: VecDeque::new() };
        Self { seen: watch::Sender::new(seen) }
    }
}

impl Seen {
    fn push(&mut self, event: impl FnOnce(u64) -> AgentEvent) {
        self.seq += 1;
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(event(self.seq)));
    }

    fn snapshot(&self) -> Arc<AgentEvent> {
        let instances = self.statuses.values().cloned().collect();
        Arc::new(AgentEvent::Snapshot { seq: self.seq, instances })
    }

    /// What a reader that has everything up to `after` lacks.
    fn behind(&self, after: Option<u64>) -> Vec<Arc<AgentEvent>> {
        let missed = after.and_then(|after| self.seq.checked_sub(after));
        match missed.and_then(|missed| usize::try_from(missed).ok()) {
            Some(missed) if missed <= self.events.len() => {
                self.events.iter().skip(self.events.len() - missed).cloned().collect()
            }
            _ => vec![self.snapshot()],
        }
    }
}

impl Events {
    /// An instance is now so; nothing happens when it was so already.
    pub fn changed(&self, status: InstanceStatus) {
        self.seen.send_if_modified(|seen| {
            if seen.statuses.get(&status.id) == Some(&status) {
                return false;
            }
            seen.statuses.insert(status.id, status.clone());
            seen.push(|seq| AgentEvent::Changed { seq, instance: status });
            true
        });
    }

    /// An instance has run into a limit and is as it was.
    pub fn warned(&self, id: InstanceId, warning: Warning) {
        self.seen.send_modify(|seen| seen.push(|seq| AgentEvent::Warned { seq, id, warning }));
    }

    /// An instance is gone, and everything of it.
    pub fn removed(&self, id: InstanceId) {
        self.seen.send_modify(|seen| {
            seen.statuses.remove(&id);
            seen.push(|seq| AgentEvent::Removed { seq, id });
        });
    }

    /// All instances, by id.
    #[must_use]
    pub fn statuses(&self) -> Vec<InstanceStatus> {
        self.seen.borrow().statuses.values().cloned().collect()
    }

    #[must_use]
    pub fn status(&self, id: InstanceId) -> Option<InstanceStatus> {
        self.seen.borrow().statuses.get(&id).cloned()
    }

    /// The events behind `after` as lines of JSON; with `follow` they go on as they happen, with a heartbeat
    /// when nothing does.
    #[must_use]
    pub fn stream(&self, after: Option<u64>, follow: bool) -> ReceiverStream<io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(4);
        let mut seen = self.seen.subscribe();
        tokio::spawn(async move {
            let mut after = after;
            loop {
                let (events, seq) = {
                    let seen = seen.borrow_and_update();
                    (seen.behind(after), seen.seq)
                };
                after = Some(seq);
                if !events.is_empty() && sender.send(Ok(lines(&events))).await.is_err() {
                    return;
                }
                if !follow {
                    return;
                }
                tokio::select! {
                    changed = tokio::time::timeout(HEARTBEAT, seen.changed()) => match changed {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return,
                        Err(_) => {
                            let heartbeat = lines(&[Arc::new(AgentEvent::Heartbeat { seq })]);
                            if sender.send(Ok(heartbeat)).await.is_err() {
                                return;
                            }
                        }
                    },
                    () = sender.closed() => return,
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

fn lines(events: &[Arc<AgentEvent>]) -> Bytes {
    let mut lines = Vec::new();
    for event in events {
        // These types have no value that JSON cannot hold.
        if let Ok(mut line) = serde_json::to_vec(event.as_ref()) {
            lines.append(&mut line);
            lines.push(b'\n');
        }
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use mogok_api::instance::{Phase, WarningCode};

    use super::*;
    use crate::instance::sample_spec;
    use crate::ledger::Record;

    fn status(phase: Phase) -> InstanceStatus {
        let record = Record::new(sample_spec(), 0);
        InstanceStatus { phase, ..record.status(std::net::Ipv4Addr::LOCALHOST) }
    }

    async fn read(events: &Events, after: Option<u64>) -> Vec<AgentEvent> {
        let chunks: Vec<_> = events.stream(after, false).collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn seq_of(event: &AgentEvent) -> u64 {
        match event {
            AgentEvent::Snapshot { seq, .. }
            | AgentEvent::Changed { seq, .. }
            | AgentEvent::Warned { seq, .. }
            | AgentEvent::Removed { seq, .. }
            | AgentEvent::Heartbeat { seq } => *seq,
        }
    }

    #[tokio::test]
    async fn a_reader_goes_on_behind_its_number_and_a_stranger_gets_the_state() {
        let events = Events::default();
        let instance = status(Phase::Up);
        events.changed(instance.clone());
        events.changed(instance.clone());
        let first = read(&events, None).await;
        assert!(matches!(&first[..], [AgentEvent::Snapshot { instances, .. }] if instances.len() == 1));
        let seq = seq_of(&first[0]);
        assert!(read(&events, Some(seq)).await.is_empty(), "the second report said nothing new");
        events.removed(instance.id);
        let rest = read(&events, Some(seq)).await;
        assert_eq!(rest, [AgentEvent::Removed { seq: seq + 1, id: instance.id }]);
        for stranger in [0, seq + 100] {
            let answer = read(&events, Some(stranger)).await;
            assert!(matches!(&answer[..], [AgentEvent::Snapshot { instances, .. }] if instances.is_empty()));
        }
    }

    #[tokio::test]
    async fn a_warning_is_an_event_and_no_state() {
        let events = Events::default();
        let instance = status(Phase::Up);
        events.changed(instance.clone());
        let seq = seq_of(&read(&events, None).await[0]);
        let warning = Warning { code: WarningCode::Throttled, message: "throttled".to_owned() };
        events.warned(instance.id, warning.clone());
        let told = AgentEvent::Warned { seq: seq + 1, id: instance.id, warning };
        assert_eq!(read(&events, Some(seq)).await, [told]);
        let state = AgentEvent::Snapshot { seq: seq + 1, instances: vec![instance] };
        assert_eq!(read(&events, None).await, [state]);
    }

    #[tokio::test]
    async fn who_lags_too_far_gets_the_state() {
        let events = Events::default();
        events.changed(status(Phase::Up));
        let seq = seq_of(&read(&events, None).await[0]);
        for _ in 0..KEPT {
            events.changed(status(Phase::Up));
        }
        assert_eq!(read(&events, Some(seq)).await.len(), KEPT);
        events.changed(status(Phase::Up));
        assert!(matches!(read(&events, Some(seq)).await[..], [AgentEvent::Snapshot { .. }]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_beats() {
        let events = Events::default();
        let mut stream = events.stream(None, true);
        stream.next().await.unwrap().unwrap();
        let beat = stream.next().await.unwrap().unwrap();
        assert!(matches!(serde_json::from_slice(&beat).unwrap(), AgentEvent::Heartbeat { .. }));
    }
}
