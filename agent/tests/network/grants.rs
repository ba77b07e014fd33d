//! What a grant does not open, and what it needs of the host.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use mogok_agent::network::{Demand, Egress, Network, NetworkConfig};
use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind::App;

use crate::GATEWAY;
use crate::lab::{Elsewhere, dial, inside, on_a_host_of_its_own, reaches, run, serve};

/// The address that [`Elsewhere`] has in a private range.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

fn granted(endpoints: &[(Ipv4Addr, u16)]) -> Demand {
    let grants = endpoints.iter().map(|(ip, port)| std::net::SocketAddrV4::new(*ip, *port)).collect();
    Demand { grants, ..Demand::new(App, false) }
}

#[test]
fn a_server_that_knows_no_way_to_the_pool_answers_under_either_policy() {
    on_a_host_of_its_own(async |lab| {
        for egress in [Egress::Deny, Egress::Internet] {
            let network = Network::start(&NetworkConfig { egress, ..lab.config() }).await.unwrap();
            // Under `Deny` it is the operator who lets the host forward.
            run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).unwrap();
            let elsewhere = Elsewhere::new();
            inside(elsewhere.netns(), || {
                run("ip", &["route", "del", "10.88.0.0/16"]).unwrap();
                serve(5432);
            });
            let demand = granted(&[(SERVER, 5432)]);
            let with = network.attach(InstanceId::new(), demand).await.unwrap();
            let seen = inside(&with.netns, || dial((SERVER, 5432)).unwrap().1);
            assert_eq!(seen, "10.99.0.1", "masqueraded");
            let receiver = inside(elsewhere.netns(), || UdpSocket::bind((SERVER, 5432)).unwrap());
            receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            inside(&with.netns, || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                let _ = socket.send_to(b"x", (SERVER, 5432));
            });
            assert!(receiver.recv_from(&mut [0; 8]).is_err(), "TCP alone is granted");
            // The rest of the policy is what it was.
            assert_eq!(reaches(&with.netns, (Ipv4Addr::new(11, 0, 0, 2), 5432)), egress == Egress::Internet);
            network.stop().await;
            run("ip", &["link", "del", "out0"]).unwrap();
        }
    });
}

#[test]
fn no_grant_opens_another_container() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let (_, tenant) = crate::web(&network).await;
        let (address, port) = (tenant.allocation.address, tenant.allocation.host_port.unwrap());
        let demand = granted(&[(address, 5000), (GATEWAY, port)]);
        let with = network.attach(InstanceId::new(), demand).await.unwrap();
        assert!(!reaches(&with.netns, (address, 5000)));
        assert!(!reaches(&with.netns, (GATEWAY, port)));
        dial((GATEWAY, port)).unwrap();
    });
}

#[test]
fn most_grants_of_many_containers_are_one_change() {
    on_a_host_of_its_own(async |lab| {
        let network = lab.start().await;
        let listed = || run("nft", &["list", "set", "inet", "mogok_test", "granted"]).unwrap();
        let all: Vec<_> = (1..=16).map(|port| (SERVER, port)).collect();
        let ids: Vec<InstanceId> = (0..100).map(|_| InstanceId::new()).collect();
        let attached = ids.iter().map(|id| network.attach(*id, granted(&all)));
        for attached in futures_util::future::join_all(attached).await {
            attached.unwrap();
        }
        assert_eq!(listed().matches("10.99.0.2").count(), 1600);
        let detached = futures_util::future::join_all(ids.iter().map(|id| network.detach(*id))).await;
        assert!(detached.iter().all(Result::is_ok));
        assert!(!listed().contains("elements"));
    });
}
