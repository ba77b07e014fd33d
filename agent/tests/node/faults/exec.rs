//! The part of a life in which a program joins the container: by pipes until its client hangs up, or in a terminal
//! to its own end.

use std::collections::BTreeMap;
use std::time::Instant;

use mogok_api::agent::client::{AgentClient, ExecEvent};
use mogok_api::agent::exec::{ExecExit, ExecRequest, TerminalSize};
use mogok_api::id::InstanceId;
use mogok_shim::failpoint::{HELPER, JOINER};
use mogok_shim::step::Step;

use super::{Attack, Fault, end};
use crate::host::{PATIENCE, pause};

/// How the program ended; `None` when the client hung up.
type Outcome = Result<Option<ExecExit>, String>;

impl Attack<'_> {
    /// Executes a program, with the fault wherever it is armed, until nothing of it is left.
    pub(super) async fn exec(&mut self, id: InstanceId, terminal: bool, point: Option<&str>) {
        let client = tokio::spawn(use_program(self.host.client.clone(), id, terminal));
        let deadline = Instant::now() + PATIENCE;
        let survives = !matches!(self.fault, Fault::ShimDies | Fault::InitDies);
        loop {
            self.strike().await;
            let helpers = self.helpers();
            // Pid 1 and the app.
            let alone = !survives || self.host.processes(id).len() == 2;
            if client.is_finished()
                && helpers.is_empty()
                && alone
                && self.host.zombies().is_empty()
                && !self.wire.holds()
            {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "left of an exec: helpers {helpers:?}, client done {}, zombies {:?}\n{}",
                client.is_finished(),
                self.host.zombies(),
                self.host.log()
            );
            pause().await;
        }
        let outcome = client.await.unwrap();
        match point {
            None => assert!(matches!(outcome, Ok(None | Some(ExecExit::Code(0)))), "{outcome:?}"),
            // What fails before the program runs is told by its name.
            Some(point) if self.fault == Fault::StepFails && is_told(point) => {
                let step = point.rsplit('/').next().unwrap();
                assert!(outcome.as_ref().is_err_and(|error| error.contains(step)), "{point}: {outcome:?}");
            }
            Some(_) => {}
        }
    }

    /// Kills the helpers, or what they have cloned: joiner and program up to its exec.
    pub(super) fn kill_helpers(&self, cloned: bool) {
        let helpers = self.helpers();
        for (pid, parent) in &helpers {
            if helpers.contains_key(parent) == cloned {
                end(*pid);
            }
        }
    }

    /// Processes of this node that execute `mogok-shim exec`, with their parents.
    fn helpers(&self) -> BTreeMap<i32, i32> {
        let mark = format!("mogok-shim\0exec\0--state-dir\0{}/", self.host.state_dir().display());
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if line.starts_with(mark.as_bytes())
                && let Some((_, fields)) = stat.rsplit_once(") ")
            {
                found.insert(pid, fields.split(' ').nth(1).unwrap().parse().unwrap());
            }
        }
        found
    }
}

/// Is this the point of a step that the helper reports? It has no socket yet in its first one, and has reported
/// already in its last.
fn is_told(point: &str) -> bool {
    let of_helper = point
        .strip_prefix(HELPER)
        .filter(|step| ![Step::Descriptors.name(), Step::ShedPrivileges.name()].contains(step));
    let step = of_helper.or_else(|| point.strip_prefix(JOINER));
    step.is_some_and(|step| Step::EXEC.iter().any(|known| known.name() == step))
}

/// Starts a program that hands a line back, and hears that line; in a terminal it hears of the end then, else it hangs
/// up. (A terminal that goes could end the program before its helper hears of it.)
async fn use_program(client: AgentClient, id: InstanceId, terminal: bool) -> Outcome {
    let script =
        if terminal { "read line; echo got $line" } else { "read line; echo got $line; exec sleep 1000" };
    let request = ExecRequest {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: [].into(),
        cwd: None,
        user: None,
        terminal: terminal.then_some(TerminalSize { rows: 2, columns: 40 }),
    };
    let talk = async {
        let chain = |error: &dyn std::error::Error| {
            let mut words = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                words += &format!(": {error}");
                cause = error.source();
            }
            words
        };
        let (sender, mut receiver) = client.exec(id, &request).await.map_err(|error| chain(&error))?;
        sender.stdin(b"it\n").await.map_err(|error| chain(&error))?;
        let mut heard = String::new();
        loop {
            match receiver.next().await.map_err(|error| chain(&error))? {
                ExecEvent::Exit(exit) if heard.contains("got it") => return Ok(Some(exit)),
                ExecEvent::Exit(exit) => return Err(format!("{exit:?} before a word: {heard:?}")),
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
                    heard.push_str(&String::from_utf8_lossy(&bytes));
                    if !terminal && heard.contains("got it") {
                        return Ok(None);
                    }
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, talk).await.unwrap_or_else(|_| Err("nothing more was heard".into()))
}
