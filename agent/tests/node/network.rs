//! What a spec and the node's settings say of the network, through the agent and over its restarts.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

use chrono::Utc;
use mogok_api::agent::LogRecord;
use mogok_api::instance::{InstanceSpec, Phase};
use nix::sys::signal::Signal;

use crate::host::{Host, instance, on_a_node_with};

/// The first address of the pool that [`Host`] gives its agent.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 1);
/// Says what the server says, again and again, or that nobody answers.
const ASK: &str = "cat /etc/resolv.conf; while true; do said=$(nc -w 2 10.91.0.1 5432 </dev/null 2>/dev/null); \
                   echo \"$0 ${said:-refused}\"; sleep 0.1; done";

/// `name` begins each of its lines.
fn asking(name: &str, grants: &[&str]) -> InstanceSpec {
    let mut spec = instance(ASK);
    spec.command.push(name.to_owned());
    spec.grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    spec
}

/// Reads on until `line` is written anew.
async fn until(host: &Host, read: &mut Vec<LogRecord>, line: &str) {
    let now = Utc::now();
    while read.last().is_none_or(|record| record.line != line || record.at < now) {
        let cursor = read.last().map(|record| record.cursor.clone());
        read.extend(host.lines(cursor.as_deref(), line).await);
    }
}

#[test]
fn grants_and_resolvers_reach_the_container_and_outlive_the_agent() {
    on_a_node_with(&["--resolver", "10.91.0.1", "--connections", "64"], async |host| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5432)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(b"granted\n"));
            }
        });
        let with = asking("with", &[&format!("{GATEWAY}:5432")]);
        let without = asking("without", &[&format!("{GATEWAY}:5433")]);
        host.want(&[with.clone(), without.clone()]).await;
        host.until_phase(with.id, Phase::Up).await;
        host.until_phase(without.id, Phase::Up).await;
        let mut read = Vec::new();
        until(host, &mut read, "with granted").await;
        until(host, &mut read, "without refused").await;
        assert!(read.iter().any(|record| record.line == "nameserver 10.91.0.1"));
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            host.end(signal);
            host.start().await;
            until(host, &mut read, "with granted").await;
            until(host, &mut read, "without refused").await;
        }
        let never = |line: &str| ["with refused", "without granted"].contains(&line);
        assert!(!read.iter().any(|record| never(&record.line)), "{read:?}");
        host.want(&[]).await;
        host.until_gone(with.id).await;
    });
}
