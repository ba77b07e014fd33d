//! Every fail point of agent, shim and child, one after the other: the step fails, or agent, shim or init is
//! killed there. Whatever happens, the container runs exactly once while it is wanted, and nothing of it is
//! left when it is not.
//!
//! Which points there are is not written down here: an undisturbed life is watched first, and what it
//! passes must be all that the code has.

use std::collections::BTreeSet;
use std::time::Instant;

use mogok_agent::failpoint;
use mogok_api::instance::{BlobMount, InstanceSpec, Phase};
use mogok_images::Store;
use mogok_shim::failpoint::{CHILD, HELPER, JOINER, SHIM, SUPERVISION};
use mogok_shim::step::Step;
use mogok_tests::leak;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, PATIENCE, on_a_node_with, pause, web};

mod exec;
mod wire;

use wire::{Answer, Wire};

/// So few user ids and ports that a leaked one is missed at once.
const FEW: &[&str] = &["--uid-ranges", "2", "--port-range", "20000-20001"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    StepFails,
    AgentDies,
    ShimDies,
    InitDies,
    /// Of an exec.
    HelperDies,
    /// What the helper has cloned, up to its exec.
    JoinerDies,
}

/// The parts of a life in which points are passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// From wanted to up.
    Start,
    /// The program ends by itself and is started again.
    End,
    /// From unwanted to gone.
    Stop,
    /// A new agent takes a running container over.
    Adoption,
    /// A program joins, and its client hangs up.
    Exec,
    /// One joins with a terminal, and ends.
    Terminal,
}

/// A node under attack.
struct Attack<'a> {
    host: &'a mut Host,
    wire: Wire,
    fault: Fault,
    /// The node without a container.
    quiet: leak::Host,
}

impl<'a> Attack<'a> {
    async fn new(host: &'a mut Host, wire: Wire) -> Self {
        // After one life, which leaves a template of its disk to the next.
        let first = web();
        host.want(std::slice::from_ref(&first)).await;
        host.until_phase(first.id, Phase::Up).await;
        host.want(&[]).await;
        host.until_gone(first.id).await;
        let quiet = host.settled().await;
        Self { host, wire, fault: Fault::StepFails, quiet }
    }

    /// A whole life, with the fault at the first passage of `point` in one part of it; the points that were
    /// passed in that part.
    async fn live(&mut self, part: Part, point: Option<&str>) -> Vec<String> {
        let spec = web();
        // Any blob of the store, so that something is mounted.
        let store = Store::open(self.host.dir().join("store")).unwrap();
        let (digest, _) = store.image(&spec.image).unwrap().unwrap();
        // By which its program is told from others.
        let mark = spec.id.to_string();
        // One process that listens and answers; SIGTERM ends it.
        let spec = InstanceSpec {
            command: ["/bin/nc", "-ll", "-p", "5000", "-e", "/bin/echo", &mark].map(str::to_owned).to_vec(),
            stop_grace_s: 2,
            blobs: vec![BlobMount { digest, path: "/blob".into() }],
            ..spec
        };
        let mut passed = Vec::new();
        for now in [Part::Start, Part::End, Part::Adoption, Part::Exec, Part::Terminal, Part::Stop] {
            if !matches!(now, Part::Start | Part::Stop) && now != part {
                continue;
            }
            self.wire.take_passed();
            if now == part
                && let Some(point) = point
            {
                self.wire
                    .arm(point, if self.fault == Fault::StepFails { Answer::Fail } else { Answer::Hold });
            }
            match now {
                Part::Start => {
                    self.host.want(std::slice::from_ref(&spec)).await;
                    self.until_up(&spec, &mark, None).await;
                }
                Part::End => {
                    let pid = marked(&mark)[0];
                    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
                    self.until_up(&spec, &mark, Some(pid)).await;
                }
                Part::Adoption => {
                    let pids = marked(&mark);
                    self.host.end(Signal::SIGKILL);
                    self.host.spawn();
                    self.until_adopted().await;
                    self.until_up(&spec, &mark, None).await;
                    if self.fault != Fault::ShimDies && self.fault != Fault::InitDies {
                        assert_eq!(marked(&mark), pids, "it was started anew");
                    }
                }
                Part::Exec | Part::Terminal => {
                    let pids = marked(&mark);
                    self.exec(spec.id, now == Part::Terminal, point).await;
                    self.until_up(&spec, &mark, None).await;
                    if self.fault != Fault::ShimDies && self.fault != Fault::InitDies {
                        assert_eq!(marked(&mark), pids, "it was started anew");
                    }
                }
                Part::Stop => {
                    self.host.want(&[]).await;
                    self.until_gone(&spec, &mark).await;
                }
            }
            if now == part {
                passed = self.wire.take_passed();
            }
        }
        self.nothing_left().await;
        passed
    }

    /// Waits until the container is up with one program, which is not `before`.
    async fn until_up(&mut self, spec: &InstanceSpec, mark: &str, before: Option<i32>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.strike().await;
            let pids = marked(mark);
            assert!(pids.len() <= 1, "it runs twice: {pids:?}\n{}", self.host.log());
            let status = self.host.status(spec.id).await;
            if pids.first().is_some_and(|pid| Some(*pid) != before)
                && status.as_ref().is_some_and(|status| status.phase == Phase::Up)
                && !self.wire.holds()
            {
                return;
            }
            assert!(Instant::now() < deadline, "{pids:?} {status:#?}\n{}", self.host.log());
            pause().await;
        }
    }

    async fn until_gone(&mut self, spec: &InstanceSpec, mark: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.strike().await;
            let status = self.host.status(spec.id).await;
            if status.is_none() && marked(mark).is_empty() && !self.wire.holds() {
                return;
            }
            assert!(Instant::now() < deadline, "{status:#?}\n{}", self.host.log());
            pause().await;
        }
    }

    /// Waits until the agent that was spawned serves, with another one should it leave.
    async fn until_adopted(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.host.client.node().await.is_err() {
            if self.wire.holds() {
                self.strike().await;
            } else if !self.host.agent_runs() {
                self.host.spawn();
            }
            assert!(Instant::now() < deadline, "{}", self.host.log());
            pause().await;
        }
    }

    /// Kills whom the fault says, as soon as somebody waits at the armed point.
    async fn strike(&mut self) {
        if !self.wire.holds() {
            return;
        }
        let shims = self.host.shims();
        match self.fault {
            Fault::StepFails => unreachable!("a step that is to fail does not wait"),
            Fault::AgentDies => {
                self.host.end(Signal::SIGKILL);
                // Who waits in shim or child goes on only when the next agent is there.
                self.host.start().await;
            }
            Fault::ShimDies => shims.iter().for_each(|pid| end(*pid)),
            Fault::InitDies => shims.iter().flat_map(|shim| children(*shim)).for_each(end),
            Fault::HelperDies => self.kill_helpers(false),
            Fault::JoinerDies => self.kill_helpers(true),
        }
        self.wire.release();
    }

    /// Waits until the node is as it was without the container.
    async fn nothing_left(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.quiet.more_in(&self.host.look());
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n{left}\n{}", self.host.log());
            pause().await;
        }
    }
}

/// Processes with `mark` in their command line, but for those that such a process has just forked.
fn marked(mark: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let parent: i32 = fields.split(' ').nth(1).unwrap().parse().unwrap();
        if !fields.starts_with('Z')
            && line.starts_with(b"/bin/nc\0")
            && line.ends_with(format!("{mark}\0").as_bytes())
        {
            found.push((pid, parent));
        }
    }
    let pids: BTreeSet<i32> = found.iter().map(|(pid, _)| *pid).collect();
    found.into_iter().filter(|(_, parent)| !pids.contains(parent)).map(|(pid, _)| pid).collect()
}

fn children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn end(pid: i32) {
    // It may just have left.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Every point that an undisturbed life passes, with the part in which it does so first.
async fn points(attack: &mut Attack<'_>) -> Vec<(Part, String)> {
    let mut points: Vec<(Part, String)> = Vec::new();
    for part in [Part::Start, Part::End, Part::Stop, Part::Adoption, Part::Exec, Part::Terminal] {
        for point in attack.live(part, None).await {
            if !points.iter().any(|(_, known)| *known == point) {
                points.push((part, point));
            }
        }
    }
    points
}

/// Strikes at every point that `mine` picks, in every way that makes sense there.
fn strike_all(mine: fn(&str) -> bool) {
    on_a_node_with(FEW, async move |host| {
        let wire = Wire::listen(&host.dir().join("failpoints.sock"));
        let mut attack = Attack::new(host, wire).await;
        let points = points(&mut attack).await;
        let mut struck = 0;
        // Before there is a shim or an init none can be killed.
        let first = |prefix| points.iter().position(|(_, point)| point.starts_with(prefix)).unwrap();
        let (shim, init) = (first(SHIM), first(CHILD));
        for (place, (part, point)) in points.iter().enumerate().filter(|(_, (_, point))| mine(point)) {
            for fault in [
                Fault::StepFails,
                Fault::AgentDies,
                Fault::ShimDies,
                Fault::InitDies,
                Fault::HelperDies,
                Fault::JoinerDies,
            ] {
                let lives = match fault {
                    Fault::StepFails | Fault::AgentDies => true,
                    Fault::ShimDies => place >= shim,
                    Fault::InitDies => place >= init,
                    Fault::HelperDies => is_of_exec(point) && point != "agent/exec_allowed",
                    Fault::JoinerDies => point.starts_with(JOINER),
                };
                if !lives {
                    continue;
                }
                let begun = Instant::now();
                attack.fault = fault;
                attack.live(*part, Some(point)).await;
                assert!(attack.wire.reached(), "{point} was not passed in {part:?}");
                println!("{part:?} {point} {fault:?}: {:?}", begun.elapsed());
                struck += 1;
            }
        }
        println!("{struck} faults");
    });
}

#[test]
fn the_points_passed_are_all_that_the_code_has() {
    on_a_node_with(FEW, async |host| {
        let wire = Wire::listen(&host.dir().join("failpoints.sock"));
        let mut attack = Attack::new(host, wire).await;
        let passed: BTreeSet<String> =
            points(&mut attack).await.into_iter().map(|(_, point)| point).collect();
        for point in failpoint::ALL.iter().chain(SUPERVISION) {
            assert!(passed.contains(*point), "{point} is not passed: {passed:#?}");
        }
        // A container with a namespace of the agent's has no loopback to set up; four steps are an exec's.
        let others = [Step::Loopback, Step::Sealed, Step::Request, Step::JoinNamespaces, Step::Terminal];
        for step in Step::ALL.iter().filter(|step| !others.contains(step)) {
            let [shim, child] = [SHIM, CHILD].map(|prefix| passed.contains(&format!("{prefix}{step}")));
            assert!(shim || child, "{step} is not passed: {passed:#?}");
        }
        // Between the filter and the death signal; the joiner's points are the program's from there on.
        for step in Step::EXEC.iter().filter(|step| **step != Step::Fork) {
            let [helper, joiner] = [HELPER, JOINER].map(|prefix| passed.contains(&format!("{prefix}{step}")));
            assert!(helper || joiner, "{step} of an exec is not passed: {passed:#?}");
        }
    });
}

#[test]
fn nothing_leaks_when_a_step_of_the_agent_breaks() {
    strike_all(|point| point.starts_with("agent/") && !is_of_exec(point));
}

#[test]
fn nothing_leaks_when_a_step_of_an_exec_breaks() {
    strike_all(is_of_exec);
}

/// Of agent, helper and what it clones.
fn is_of_exec(point: &str) -> bool {
    point.starts_with("agent/exec_") || point.starts_with(HELPER) || point.starts_with(JOINER)
}

#[test]
fn nothing_leaks_when_a_step_of_the_shim_breaks() {
    strike_all(|point| point.starts_with(SHIM));
}

#[test]
fn nothing_leaks_when_a_step_of_the_child_breaks() {
    strike_all(|point| point.starts_with(CHILD));
}
