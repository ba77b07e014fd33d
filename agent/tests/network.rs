//! Who reaches whom, on the real kernel. No packet leaves the namespaces that a test makes for itself.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use mogok_agent::network::{
    Allocation, Attachment, Demand, Egress, Network, NetworkConfig, NetworkError, Saved,
};
use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind::{App, Build};

#[path = "network/caps.rs"]
mod caps;
#[path = "network/dns.rs"]
mod dns;
#[path = "network/grants.rs"]
mod grants;
#[path = "network/ipv6.rs"]
mod ipv6;
#[path = "network/lab.rs"]
mod lab;
#[path = "network/pools.rs"]
mod pools;
#[path = "network/reach.rs"]
mod reach;

use lab::{Elsewhere, PATIENCE, dial, inside, on_a_host_of_its_own, reaches, run, serve};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// A refusal in words takes no longer, a dropped packet is asked for again after a second.
const AT_ONCE: Duration = Duration::from_millis(700);

/// A web container that serves.
async fn web(network: &Network) -> (InstanceId, Attachment) {
    let id = InstanceId::new();
    let attachment = network.attach(id, Demand::new(App, true)).await.unwrap();
    inside(&attachment.netns, || serve(5000));
    (id, attachment)
}

fn endpoint(allocation: &Allocation) -> SocketAddr {
    (GATEWAY, allocation.host_port.unwrap()).into()
}

#[test]
fn routers_reach_a_container_and_are_seen_as_the_gateway() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        assert_eq!(network.gateway(), GATEWAY);
        let (_, one) = web(&network).await;
        let (_, two) = web(&network).await;
        assert_ne!(one.allocation, two.allocation);
        let (mut stream, seen) = dial(endpoint(&one.allocation)).unwrap();
        assert_eq!(seen, "10.88.0.1");
        stream.write_all(b"ping").unwrap();
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"ping");
        dial(endpoint(&two.allocation)).unwrap();
        // The health check may take the direct way.
        dial((one.allocation.address, 5000)).unwrap();
    });
}

#[test]
fn containers_reach_neither_each_other_nor_the_host() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).unwrap();
        let (_, one) = web(&network).await;
        let (_, two) = web(&network).await;
        serve(7000);
        let _elsewhere = Elsewhere::new();
        assert!(!reaches(&one.netns, (two.allocation.address, 5000)), "container to container");
        assert!(!reaches(&one.netns, (GATEWAY, two.allocation.host_port.unwrap())), "by its host port");
        assert!(!reaches(&one.netns, (GATEWAY, one.allocation.host_port.unwrap())), "its own host port");
        assert!(!reaches(&one.netns, (GATEWAY, 7000)), "container to gateway");
        assert!(!reaches(&one.netns, (Ipv4Addr::new(11, 0, 0, 1), 7000)), "container to host");
        // The tests above mean something: everything is there for the host, and for itself.
        dial((GATEWAY, 7000)).unwrap();
        assert!(reaches(&two.netns, (two.allocation.address, 5000)));
    });
}

#[test]
fn only_builds_reach_what_is_granted_to_builds() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        serve(8081);
        serve(8082);
        let build = network.attach(InstanceId::new(), Demand::new(Build, false)).await.unwrap();
        let app = network.attach(InstanceId::new(), Demand::new(App, false)).await.unwrap();
        assert_eq!(build.allocation.host_port, None);
        assert!(reaches(&build.netns, (GATEWAY, 8081)));
        assert!(!reaches(&build.netns, (GATEWAY, 8082)));
        assert!(!reaches(&app.netns, (GATEWAY, 8081)));
        // The quickest of some: a busy machine takes its time too, but no dropped packet is ever answered at once.
        let refusal = || {
            let begun = Instant::now();
            assert!(!reaches(&app.netns, (GATEWAY, 8081)));
            begun.elapsed()
        };
        let quickest = (0..5).map(|_| refusal()).min();
        assert!(quickest < Some(AT_ONCE), "refused in words, so that a program need not wait: {quickest:?}");
    });
}

#[test]
fn without_egress_nothing_leaves_even_from_a_host_that_forwards() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let elsewhere = Elsewhere::new();
        inside(elsewhere.netns(), || serve(80));
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).unwrap();
        let (_, app) = web(&network).await;
        for target in [Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(11, 0, 0, 2)] {
            dial((target, 80)).unwrap();
            assert!(!reaches(&app.netns, (target, 80)), "{target}");
        }
        assert!(network.resolvers().is_empty());
        // And nobody elsewhere reaches a container but by its host port.
        assert!(!reaches(elsewhere.netns(), (app.allocation.address, 5000)));
        assert!(reaches(elsewhere.netns(), (GATEWAY, app.allocation.host_port.unwrap())));
    });
}

#[test]
fn with_egress_public_addresses_are_reached_and_private_ones_are_not() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { egress: Egress::Internet, ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        let elsewhere = Elsewhere::new();
        inside(elsewhere.netns(), || serve(80));
        let (_, one) = web(&network).await;
        let (_, two) = web(&network).await;
        let seen = inside(&one.netns, || dial((Ipv4Addr::new(11, 0, 0, 2), 80)).unwrap().1);
        assert_eq!(seen, "11.0.0.1", "masqueraded");
        dial((Ipv4Addr::new(10, 99, 0, 2), 80)).unwrap();
        assert!(!reaches(&one.netns, (Ipv4Addr::new(10, 99, 0, 2), 80)), "private range");
        assert!(!reaches(&one.netns, (two.allocation.address, 5000)), "container to container");
        serve(7000);
        assert!(!reaches(&one.netns, (Ipv4Addr::new(11, 0, 0, 1), 7000)), "the host's public address");
        assert!(!reaches(elsewhere.netns(), (two.allocation.address, 5000)), "from outside, directly");
    });
}

#[test]
fn a_container_cannot_send_as_another() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { egress: Egress::Internet, ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        let elsewhere = Elsewhere::new();
        let target = Ipv4Addr::new(11, 0, 0, 2);
        let receiver = inside(elsewhere.netns(), move || UdpSocket::bind((target, 9)).unwrap());
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, honest) = web(&network).await;
        let (_, forger) = web(&network).await;
        let send = move |from: Ipv4Addr| UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (target, 9));
        let own = forger.allocation.address;
        inside(&forger.netns, move || send(own)).unwrap();
        receiver.recv_from(&mut [0; 8]).expect("its own address passes");
        for stolen in [honest.allocation.address, GATEWAY, Ipv4Addr::new(11, 0, 0, 99)] {
            inside(&forger.netns, move || {
                run("ip", &["addr", "add", &format!("{stolen}/32"), "dev", "eth0"]).unwrap();
                let _ = send(stolen);
            });
            assert!(receiver.recv_from(&mut [0; 8]).is_err(), "sent as {stolen}");
        }
    });
}

#[test]
fn detach_leaves_nothing_and_frees_the_port_last() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let (id, attachment) = web(&network).await;
        let Attachment { netns, allocation } = attachment;
        let error = network.attach(id, Demand::new(App, true)).await.unwrap_err();
        assert!(matches!(error, NetworkError::AlreadyAttached(_)));
        network.detach(id).await.unwrap();
        network.detach(id).await.unwrap();
        network.detach(InstanceId::new()).await.unwrap();
        // `netns` still lives: the link goes because it is removed, not with its namespace.
        let deadline = Instant::now() + Duration::from_secs(20);
        while inside(&netns, || run("ip", &["-o", "link"]).unwrap().lines().count()) != 1 {
            assert!(Instant::now() < deadline, "the link is not removed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let address = allocation.address.to_string();
        assert!(!run("ip", &["-o", "link"]).unwrap().contains(&allocation.link));
        assert!(!run("ip", &["route"]).unwrap().contains(&address));
        let table = run("nft", &["list", "table", "inet", "mogok_test"]).unwrap();
        let port = allocation.host_port.unwrap();
        assert!(!table.contains(&address) && !table.contains(&port.to_string()), "{table}");
        assert!(dial(endpoint(&allocation)).is_err());
        for _ in 0..9 {
            let next = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap();
            assert_ne!(next.allocation.host_port, allocation.host_port);
        }
        let last = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap();
        assert_eq!(last.allocation.host_port, allocation.host_port);
        let error = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap_err();
        assert!(matches!(error, NetworkError::NoPort { first: 20000, last: 20009 }));
        network.attach(InstanceId::new(), Demand::new(App, false)).await.unwrap();
    });
}

#[test]
fn a_port_that_someone_listens_on_is_skipped() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let _taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 20000)).unwrap();
        let attachment = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap();
        assert_eq!(attachment.allocation.host_port, Some(20001));
    });
}

#[test]
fn containers_live_on_through_a_restart() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let (id, kept) = web(&network).await;
        let (gone_id, gone) = web(&network).await;
        let (orphan_id, orphan) = web(&network).await;
        let (mut stream, _) = dial(endpoint(&kept.allocation)).unwrap();
        let (mut stale, _) = dial(endpoint(&orphan.allocation)).unwrap();
        drop(network);
        run("ip", &["link", "del", &gone.allocation.link]).unwrap();

        let saved = |id, of: &Attachment| Saved {
            id,
            demand: Demand::new(App, true),
            allocation: of.allocation.clone(),
        };
        let all = vec![saved(id, &kept), saved(gone_id, &gone)];
        let (network, lost) = Network::start_with(&lab.config(), all).await.unwrap();
        assert_eq!(lost, [gone_id]);
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).expect("an open connection goes on");
        dial(endpoint(&kept.allocation)).unwrap();
        let error = network.restore(gone_id, Demand::new(App, true), &gone.allocation).await.unwrap_err();
        assert!(matches!(error, NetworkError::LinkGone { .. }));
        network.restore(id, Demand::new(App, true), &kept.allocation).await.unwrap();

        // Nobody has claimed this one: its port is nobody's, also for connections of before.
        assert!(dial(endpoint(&orphan.allocation)).is_err());
        stale.write_all(b"ping").unwrap();
        assert_eq!(stale.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (_, fresh) = web(&network).await;
        assert_ne!(fresh.allocation.address, orphan.allocation.address);
        network.restore(orphan_id, Demand::new(App, true), &orphan.allocation).await.unwrap();
        dial(endpoint(&orphan.allocation)).unwrap();
        network.sweep().await.unwrap();
        for known in [&kept, &fresh, &orphan] {
            dial(endpoint(&known.allocation)).unwrap();
        }

        drop(network);
        let network = lab.start().await;
        network.restore(id, Demand::new(App, true), &kept.allocation).await.unwrap();
        dial(endpoint(&kept.allocation)).unwrap();
        assert!(network.sweep().await.unwrap() >= 2);
        let links = run("ip", &["-o", "link"]).unwrap();
        assert!(!links.contains(&orphan.allocation.link) && !links.contains(&fresh.allocation.link));
        dial(endpoint(&kept.allocation)).unwrap();
    });
}

#[test]
fn a_flushed_table_is_made_anew() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let (one, first) = web(&network).await;
        run("nft", &["flush", "ruleset"]).unwrap();
        let (_, second) = web(&network).await;
        dial(endpoint(&first.allocation)).unwrap();
        assert!(!reaches(&second.netns, (GATEWAY, first.allocation.host_port.unwrap())));
        run("nft", &["flush", "ruleset"]).unwrap();
        network.detach(one).await.unwrap();
        dial(endpoint(&second.allocation)).unwrap();
        run("nft", &["flush", "ruleset"]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(15);
        while dial(endpoint(&second.allocation)).is_err() {
            assert!(Instant::now() < deadline, "nobody looked after the table");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn stop_gives_the_host_back_and_touches_nothing_else() {
    on_a_host_of_its_own(async |lab| {
        run("nft", &["add", "table", "inet", "other"]).unwrap();
        let before = [run("nft", &["list", "ruleset"]), run("ip", &["-o", "route"])];
        let network = lab.start().await;
        let (_, _attachment) = web(&network).await;
        network.stop().await;
        assert_eq!(before, [run("nft", &["list", "ruleset"]), run("ip", &["-o", "route"])]);
        assert_eq!(run("ip", &["-o", "link"]).unwrap().lines().count(), 1);
        assert!(!run("ip", &["-o", "addr"]).unwrap().contains("10.88.0.1"));
        let error = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap_err();
        assert!(matches!(error, NetworkError::Stopped));
    });
}

#[test]
fn what_an_agent_has_not_handed_out_vanishes_with_it() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        // Any answer comes after the first namespaces were made.
        network.sweep().await.unwrap();
        let (_, attachment) = web(&network).await;
        drop(network);
        let links =
            || run("ip", &["-o", "link"]).unwrap().lines().filter(|line| line.contains(": mg")).count();
        let deadline = Instant::now() + Duration::from_secs(10);
        while links() != 1 {
            assert!(Instant::now() < deadline, "{} links are left", links());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(run("ip", &["-o", "link"]).unwrap().contains(&attachment.allocation.link));
    });
}

#[test]
fn many_at_once_get_what_they_need_and_leave_nothing() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { ports: (20000, 20099), ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        for _ in 0..2 {
            let ids: Vec<InstanceId> = (0..60).map(|_| InstanceId::new()).collect();
            let attached = futures_util::future::join_all(
                ids.iter().map(|id| network.attach(*id, Demand::new(App, true))),
            );
            let attached: Vec<Attachment> = attached.await.into_iter().map(Result::unwrap).collect();
            let ports: std::collections::HashSet<_> =
                attached.iter().map(|attachment| attachment.allocation.host_port).collect();
            assert_eq!(ports.len(), 60);
            for attachment in &attached[50..] {
                inside(&attachment.netns, || serve(5000));
                dial(endpoint(&attachment.allocation)).unwrap();
            }
            let detached = futures_util::future::join_all(ids.iter().map(|id| network.detach(*id))).await;
            assert!(detached.iter().all(Result::is_ok));
            assert!(dial(endpoint(&attached[55].allocation)).is_err());
        }
        let table = run("nft", &["list", "map", "inet", "mogok_test", "ports"]).unwrap();
        assert!(!table.contains("elements"), "{table}");
        network.stop().await;
        assert_eq!(run("ip", &["-o", "link"]).unwrap().lines().count(), 1);
    });
}

/// Figures, not assertions: the load of the machine decides them.
#[test]
fn figures() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { ports: (20000, 20999), ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        let mut held = Vec::new();
        for containers in [1, 200] {
            let filling = Instant::now();
            while held.len() < containers {
                let some = (held.len()..containers.min(held.len() + 32)).map(|_| InstanceId::new());
                let some: Vec<_> = some.collect();
                let attached = some.iter().map(|id| network.attach(*id, Demand::new(App, true)));
                for attachment in futures_util::future::join_all(attached).await {
                    held.push(attachment.unwrap());
                }
            }
            eprintln!("{containers} attached in {:?}", filling.elapsed());
            let (mut attach, mut detach) = (Vec::new(), Vec::new());
            for _ in 0..20 {
                let id = InstanceId::new();
                tokio::time::sleep(Duration::from_millis(60)).await;
                let start = Instant::now();
                let attachment = network.attach(id, Demand::new(App, true)).await.unwrap();
                attach.push(start.elapsed());
                let start = Instant::now();
                network.detach(id).await.unwrap();
                detach.push(start.elapsed());
                drop(attachment);
            }
            for (name, times) in [("attach", &mut attach), ("detach", &mut detach)] {
                times.sort();
                let (p50, max) = (times[times.len() / 2], times[times.len() - 1]);
                eprintln!("{name} beside {containers}: p50 {p50:?} max {max:?}");
            }
        }
        let stopping = Instant::now();
        network.stop().await;
        eprintln!("stop with {} attached: {:?}", held.len(), stopping.elapsed());
    });
}
