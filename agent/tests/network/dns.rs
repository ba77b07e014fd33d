//! Which DNS servers containers ask, and that they reach nothing else of them. The server is a toy.

use std::net::{Ipv4Addr, UdpSocket};

use mogok_agent::network::{Demand, Egress, Network, NetworkConfig, NetworkError};
use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind::{App, Build};

use crate::GATEWAY;
use crate::lab::{Elsewhere, PATIENCE, inside, on_a_host_of_its_own, reaches, run, serve};

/// In a private range, which is forbidden but for this.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Answers every question with 192.0.2.80.
fn answer(port: u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut question) {
            let mut reply = question[..length].to_vec();
            // An answer, one record (RFC 1035, 4.1): a pointer to the name asked for, A, IN, 60 s, 4 bytes.
            reply[2] |= 0x80;
            reply[7] = 1;
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
            let _ = socket.send_to(&reply, asker);
        }
    });
}

/// What `server` says of `db.example`.
fn resolve(server: Ipv4Addr, port: u16) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(b"\x02db\x07example\0\0\x01\0\x01");
    socket.send_to(&question, (server, port)).ok()?;
    let mut reply = [0; 512];
    let (length, _) = socket.recv_from(&mut reply).ok()?;
    reply[..length].last_chunk::<4>().map(|address| Ipv4Addr::from(*address))
}

#[test]
fn containers_resolve_at_a_private_server_and_reach_nothing_else_of_it() {
    on_a_host_of_its_own(async |lab| {
        for egress in [Egress::Internet, Egress::Deny] {
            let config = NetworkConfig { egress, resolvers: vec![SERVER, GATEWAY], ..lab.config() };
            let network = Network::start(&config).await.unwrap();
            run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).unwrap();
            assert_eq!(network.resolvers(), [SERVER, GATEWAY]);
            let elsewhere = Elsewhere::new();
            inside(elsewhere.netns(), || {
                [53, 54].into_iter().for_each(answer);
                [53, 80].into_iter().for_each(serve);
            });
            for kind in [App, Build] {
                let container = network.attach(InstanceId::new(), Demand::new(kind, false)).await.unwrap();
                let answered = inside(&container.netns, || resolve(SERVER, 53));
                assert_eq!(answered, Some(Ipv4Addr::new(192, 0, 2, 80)));
                assert!(reaches(&container.netns, (SERVER, 53)), "a long answer comes by TCP");
                assert_eq!(inside(&container.netns, || resolve(SERVER, 54)), None);
                assert!(!reaches(&container.netns, (SERVER, 80)));
                assert!(!reaches(&container.netns, (Ipv4Addr::new(10, 99, 0, 1), 53)), "another address");
            }
            network.stop().await;
            run("ip", &["link", "del", "out0"]).unwrap();
        }
    });
}

#[test]
fn a_server_of_the_host_itself_is_reached_by_its_port_alone() {
    on_a_host_of_its_own(async |lab| {
        let config = NetworkConfig { resolvers: vec![GATEWAY], ..lab.config() };
        let network = Network::start(&config).await.unwrap();
        [53, 54].into_iter().for_each(answer);
        let container = network.attach(InstanceId::new(), Demand::new(App, false)).await.unwrap();
        assert!(inside(&container.netns, || resolve(GATEWAY, 53)).is_some());
        assert!(inside(&container.netns, || resolve(GATEWAY, 54)).is_none());
    });
}

#[test]
fn without_a_setting_the_deny_policy_resolves_nothing() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        answer(53);
        let container = network.attach(InstanceId::new(), Demand::new(App, false)).await.unwrap();
        assert!(network.resolvers().is_empty());
        assert!(inside(&container.netns, || resolve(GATEWAY, 53)).is_none());
    });
}

#[test]
fn a_server_that_is_the_containers_own_loopback_is_refused() {
    on_a_host_of_its_own(async |lab| {
        let with = |resolvers| NetworkConfig { resolvers, ..lab.config() };
        let error = Network::start(&with(vec![Ipv4Addr::new(127, 0, 0, 53)])).await.unwrap_err();
        assert!(matches!(error, NetworkError::InvalidResolver(_)), "{error}");
        let error = Network::start(&with(vec![SERVER; 4])).await.unwrap_err();
        assert!(matches!(error, NetworkError::TooManyResolvers(4)), "{error}");
    });
}
