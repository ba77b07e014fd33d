//! What a container has of the network for itself: grants, and a share of the node's bandwidth.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use mogok_agent::network::{Attachment, Demand, Network, NetworkConfig, Saved};
use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind::{App, Build};

use super::lab::{Elsewhere, dial, inside, on_a_host_of_its_own, reaches, run, serve};
use super::{GATEWAY, endpoint};

/// A private address on the other machine, a database's.
const DATABASE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 99, 0, 2), 5432);

fn granted() -> Demand {
    let grants = [DATABASE, (GATEWAY, 9000)].map(|(ip, port)| SocketAddrV4::new(ip, port));
    Demand { grants: BTreeSet::from(grants), ..Demand::new(App, false) }
}

#[test]
fn a_grant_lets_one_container_to_one_port_and_ends_with_it() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).unwrap();
        let elsewhere = Elsewhere::new();
        inside(elsewhere.netns(), || [5432, 5433].into_iter().for_each(serve));
        [9000, 9001].into_iter().for_each(serve);
        let (id, demand) = (InstanceId::new(), granted());
        let one = network.attach(id, demand.clone()).await.unwrap();
        let other = network.attach(InstanceId::new(), Demand::new(App, false)).await.unwrap();
        let check = |one: &Attachment| {
            assert!(reaches(&one.netns, DATABASE) && reaches(&one.netns, (GATEWAY, 9000)));
            assert!(!reaches(&one.netns, (DATABASE.0, 5433)), "another port");
            assert!(!reaches(&one.netns, (GATEWAY, 9001)), "another port of the host");
            assert!(!reaches(&other.netns, DATABASE) && !reaches(&other.netns, (GATEWAY, 9000)));
            // And nobody comes the other way.
            assert!(!reaches(elsewhere.netns(), (one.allocation.address, 5000)));
        };
        check(&one);

        drop(network);
        let saved = Saved { id, demand, allocation: one.allocation.clone() };
        let (network, lost) = Network::start_with(&lab.config(), vec![saved]).await.unwrap();
        assert_eq!(lost, []);
        assert!(reaches(&one.netns, DATABASE), "after a restart of the agent");
        network.detach(id).await.unwrap();
        let left = run("nft", &["list", "set", "inet", "mogok_test", "granted"]).unwrap();
        assert!(!left.contains("elements"), "{left}");
    });
}

/// Bytes that take about four seconds at [`MEGABITS`].
const BYTES: usize = 2_500_000;
/// So few that an emulated machine without the cap is quicker by far.
const MEGABITS: NonZeroU32 = NonZeroU32::new(4).unwrap();
/// A second's worth and 256 KiB go through at once.
const LEAST: Duration = Duration::from_millis(2500);

/// Sends [`BYTES`] and answers how long it took until the other side had them all.
fn send(mut stream: TcpStream) -> Duration {
    let began = Instant::now();
    stream.write_all(&vec![0; BYTES]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.read_exact(&mut [0]).expect("the other side has it all");
    began.elapsed()
}

/// Reads to the end of each connection and says so with one byte.
fn swallow(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            if std::io::copy(&mut stream, &mut std::io::sink()).is_ok() {
                let _ = stream.write_all(b"!");
            }
        }
    });
}

#[test]
fn bandwidth_is_capped_both_ways_and_for_each_container_alone() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { bandwidth: MEGABITS, ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        swallow(8081);
        let build = network.attach(InstanceId::new(), Demand::new(Build, false)).await.unwrap();
        let web = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap();
        let calm = network.attach(InstanceId::new(), Demand::new(App, true)).await.unwrap();
        inside(&web.netns, || swallow(5000));
        inside(&calm.netns, || serve(5000));

        let netns = build.netns.try_clone().unwrap();
        let sending =
            std::thread::spawn(move || inside(netns, || send(TcpStream::connect((GATEWAY, 8081)).unwrap())));
        let to_web = endpoint(&web.allocation);
        let receiving = std::thread::spawn(move || send(TcpStream::connect(to_web).unwrap()));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!sending.is_finished() && !receiving.is_finished());
        dial(endpoint(&calm.allocation)).expect("a neighbour has its own");
        let (sent, received) = (sending.join().unwrap(), receiving.join().unwrap());
        assert!(sent > LEAST && received > LEAST, "{sent:?} {received:?}");

        // And it is the cap that took the time.
        drop(network);
        let saved = |of: &Attachment| Saved {
            id: InstanceId::new(),
            demand: Demand::new(Build, false),
            allocation: of.allocation.clone(),
        };
        let all = vec![saved(&build)];
        let (_network, lost) = Network::start_with(&lab.config(), all).await.unwrap();
        assert_eq!(lost, []);
        let free = inside(&build.netns, || send(TcpStream::connect((GATEWAY, 8081)).unwrap()));
        eprintln!("capped {sent:?} out, {received:?} in; else {free:?}");
        assert!(free < sent, "{free:?} {sent:?}");
    });
}
