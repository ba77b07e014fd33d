//! How many connections one container may have opened, and that its neighbours do not notice.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use mogok_agent::network::{Egress, Network, NetworkConfig};

use crate::lab::{Elsewhere, dial, inside, on_a_host_of_its_own, reaches, serve};
use crate::web;

const PUBLIC: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 2);
const CAP: NonZeroU32 = NonZeroU32::new(5).unwrap();

fn tracked() -> usize {
    let tracked = std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").unwrap();
    let entries = tracked.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap();
    usize::from_str_radix(entries, 16).unwrap()
}

#[test]
fn no_container_fills_the_connection_table() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { egress: Egress::Internet, ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        let elsewhere = Elsewhere::new();
        inside(elsewhere.netns(), || serve(80));
        let (_, greedy) = web(&network).await;
        let (_, modest) = web(&network).await;
        inside(&greedy.netns, move || {
            for port in 10_000..15_000 {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                let _ = socket.send_to(b"x", (PUBLIC, 9));
            }
        });
        let entries = tracked();
        assert!((4000..4200).contains(&entries), "{entries} connections are tracked");
        assert!(!reaches(&greedy.netns, (PUBLIC, 80)));
        assert!(reaches(&modest.netns, (PUBLIC, 80)));
    });
}

#[test]
fn one_connection_more_than_the_cap_is_refused_until_one_ends() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { egress: Egress::Internet, connections: CAP, ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        let elsewhere = Elsewhere::new();
        inside(elsewhere.netns(), || serve(80));
        let (_, greedy) = web(&network).await;
        let (_, modest) = web(&network).await;
        let mut open: Vec<TcpStream> =
            inside(&greedy.netns, || (0..5).map(|_| dial((PUBLIC, 80)).unwrap().0).collect());
        assert!(!reaches(&greedy.netns, (PUBLIC, 80)), "the sixth");
        assert!(reaches(&modest.netns, (PUBLIC, 80)), "a neighbour's first");
        // Those that are open go on, and visitors are not counted: their number is the router's to bound.
        open[0].write_all(b"ping").unwrap();
        open[0].read_exact(&mut [0; 4]).unwrap();
        let visitors: Vec<_> = (0..8).map(|_| dial(crate::endpoint(&greedy.allocation)).unwrap()).collect();
        assert_eq!(visitors.len(), 8);
        open.pop();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !reaches(&greedy.netns, (PUBLIC, 80)) {
            assert!(Instant::now() < deadline, "an ended connection is still counted");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}
