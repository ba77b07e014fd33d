//! Random lives, one after the other and side by side: nothing is left behind, and the agent does not grow.
//! `CYCLES` says how many (`make soak`); without it a few, so that the test itself is tested.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mogok_api::agent::client::{AgentClient, ExecEvent};
use mogok_api::agent::exec::ExecRequest;
use mogok_api::app::RestartPolicy;
use mogok_api::id::InstanceId;
use mogok_api::instance::{ContainerKind, InstanceSpec, Phase};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, PATIENCE, instance, on_a_node_with, pause, web};

/// Lives at a time.
const AT_ONCE: usize = 8;
/// Anonymous memory that the last tenth of the samples may take beyond the first, in KiB: threads come, and the
/// allocator rounds up. In 5,000 cycles a leak of 2 KiB a cycle shows.
const SLACK_KIB: u64 = 2048;

/// Descriptors that the last tenth may hold beyond the first: two for each of the 128 instances whose logs a reader
/// keeps open, 64 namespaces made ahead, and what is under way. A leak of one in ten cycles shows in 5,000.
const SLACK_DESCRIPTORS: u64 = 2 * 128 + 64 + 8;

/// What is done to an instance at a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Stop,
    Exec,
    KillProgram,
    KillShim,
    KillAgent,
    RestartAgent,
}

/// A small generator of numbers (xorshift64), so that a run can be had again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn deed(&mut self) -> Deed {
        match self.below(100) {
            0..40 => Deed::Stop,
            40..60 => Deed::Exec,
            60..80 => Deed::KillProgram,
            80..97 => Deed::KillShim,
            97..99 => Deed::KillAgent,
            _ => Deed::RestartAgent,
        }
    }

    fn spec(&mut self) -> InstanceSpec {
        match self.below(8) {
            0..=2 => InstanceSpec { stop_grace_s: 2, ..web() },
            3 | 4 => InstanceSpec {
                kind: ContainerKind::Build,
                restart: RestartPolicy::Never,
                ..instance("echo built; exit 0")
            },
            5 => InstanceSpec { stop_grace_s: 1, ..instance("trap '' TERM; exec sleep 10000") },
            _ => instance("echo up; exec sleep 10000"),
        }
    }
}

/// What the agent holds: descriptors, and anonymous memory in KiB.
fn held(agent: u32) -> (usize, u64) {
    let descriptors = std::fs::read_dir(format!("/proc/{agent}/fd")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    (descriptors, anonymous.trim().trim_end_matches(" kB").parse().unwrap())
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Waits until each wanted one is up or has done its work.
async fn until_settled(host: &Host, wanted: &BTreeMap<InstanceId, InstanceSpec>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let statuses = host.client.instances().await.unwrap();
        let settled = |id: &InstanceId| {
            let status = statuses.iter().find(|status| status.id == *id);
            // One that is killed twice in short waits for its restart, which is as settled as can be.
            status.is_some_and(|status| matches!(status.phase, Phase::Up | Phase::Exited | Phase::Crashed))
        };
        if wanted.keys().all(settled) && statuses.len() == wanted.len() {
            return;
        }
        assert!(Instant::now() < deadline, "{statuses:#?}\n{}", host.log());
        pause().await;
    }
}

/// Reads all output for ever, as the control plane does: what nobody reads the agent keeps for a quarter of an
/// hour.
async fn read_logs(client: AgentClient) {
    let mut cursor: Option<String> = None;
    loop {
        if let Ok(mut stream) = client.logs(cursor.as_deref()).await {
            while let Ok(Some(record)) = stream.next().await {
                cursor = Some(record.cursor);
            }
        }
        pause().await;
    }
}

/// The exit status of `true`, executed in a container that may be anywhere in its life.
async fn exec(host: &Host, id: InstanceId) -> Option<u8> {
    let request = ExecRequest {
        command: vec!["/bin/true".to_owned()],
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        terminal: None,
    };
    let (_sender, mut receiver) = host.client.exec(id, &request).await.ok()?;
    loop {
        match tokio::time::timeout(PATIENCE, receiver.next()).await.unwrap() {
            Ok(ExecEvent::Exit(exit)) => return Some(exit.status()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

#[test]
fn random_lives_leave_nothing_behind() {
    let cycles = std::env::var("CYCLES").map_or(60, |text| text.parse().unwrap());
    let seed = std::env::var("SEED").map_or(0x2545_f491_4f6c_dd1d, |text| text.parse().unwrap());
    // As few ranges of user ids and ports as these lives take, so that a lost one is missed.
    on_a_node_with(&["--uid-ranges", "16", "--port-range", "20000-20015"], async move |host| {
        let begun = Instant::now();
        let mut random = Random(seed);
        // The first lives leave templates and caches behind, which is no leak.
        let warm: Vec<_> = (0..AT_ONCE).map(|_| random.spec()).chain([web()]).collect();
        host.want(&warm).await;
        until_settled(host, &warm.iter().map(|spec| (spec.id, spec.clone())).collect()).await;
        host.want(&[]).await;
        until_settled(host, &BTreeMap::new()).await;
        let quiet = host.settled().await;

        let mut wanted: BTreeMap<InstanceId, InstanceSpec> = BTreeMap::new();
        let mut done = BTreeMap::<String, u32>::new();
        let mut samples: Vec<(usize, u64)> = Vec::new();
        let (mut finished, mut executed) = (0, 0);
        let reader = tokio::spawn(read_logs(host.client.clone()));
        while finished < cycles {
            while wanted.len() < AT_ONCE {
                let spec = random.spec();
                wanted.insert(spec.id, spec);
            }
            let all: Vec<_> = wanted.values().cloned().collect();
            host.want(&all).await;
            if random.below(4) > 0 {
                until_settled(host, &wanted).await;
            }
            for _ in 0..=random.below(AT_ONCE as u64 - 2) {
                let victim = *wanted.keys().nth(random.below(wanted.len() as u64) as usize).unwrap();
                // What the agent grows by shows only in one that lives: in the second half nobody ends it.
                let deed = match random.deed() {
                    Deed::KillAgent | Deed::RestartAgent if finished >= cycles / 2 => Deed::Stop,
                    deed => deed,
                };
                let detail = host.client.instance(victim).await.ok();
                let hit = |pid: Option<i32>| {
                    // It may have ended by itself.
                    let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
                };
                match deed {
                    Deed::Stop => {}
                    Deed::Exec => executed += u32::from(exec(host, victim).await == Some(0)),
                    Deed::KillProgram => hit(detail.and_then(|detail| detail.pid)),
                    Deed::KillShim => hit(detail.and_then(|detail| detail.shim_pid)),
                    Deed::KillAgent | Deed::RestartAgent => {
                        host.end(if deed == Deed::KillAgent { Signal::SIGKILL } else { Signal::SIGTERM });
                        host.start().await;
                        samples.clear();
                    }
                }
                *done.entry(format!("{deed:?}")).or_default() += 1;
                wanted.remove(&victim);
                finished += 1;
                if finished % 500 == 0 {
                    println!("{finished} cycles in {:?}: {:?}", begun.elapsed(), samples.last());
                }
            }
            samples.push(held(host.agent_pid()));
        }
        reader.abort();
        assert!(executed > 0, "nothing was executed");
        host.want(&[]).await;
        until_settled(host, &BTreeMap::new()).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = quiet.more_in(&host.look());
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "left behind:\n{left}\n{}", host.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // At first what the agent keeps a number of fills up: 2,048 events, the output of the last minute's gone.
        let warm = &samples[samples.len() / 3..];
        let tenth = (warm.len() / 10).max(1);
        let of = |part: &[(usize, u64)]| {
            let mut descriptors: Vec<u64> = part.iter().map(|(count, _)| *count as u64).collect();
            let mut memory: Vec<u64> = part.iter().map(|(_, kib)| *kib).collect();
            (median(&mut descriptors), median(&mut memory))
        };
        let (first, last) = (of(&warm[..tenth]), of(&warm[warm.len() - tenth..]));
        println!("{finished} cycles, seed {seed}, {:?}: {done:?}", begun.elapsed());
        println!(
            "{} samples of the last agent, warm; descriptors and KiB: first tenth {first:?}, last {last:?}",
            warm.len()
        );
        assert!(last.1 <= first.1 + SLACK_KIB, "the agent grows: {first:?} -> {last:?}");
        assert!(last.0 <= first.0 + SLACK_DESCRIPTORS, "descriptors grow: {first:?} -> {last:?}");
    });
}
