//! A container has IPv6 on its own loopback and nowhere else.

use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};

use crate::lab::{PATIENCE, inside, on_a_host_of_its_own, run};
use crate::web;

/// The link-local address of an interface, once the kernel has given it one.
fn link_local(interface: &str) -> (Ipv6Addr, u32) {
    let text = run("ip", &["-6", "-o", "addr", "show", "dev", interface, "scope", "link"]).unwrap();
    let address = text.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap_or(&text);
    (address.parse().unwrap(), nix::net::if_::if_nametoindex(interface).unwrap())
}

#[test]
fn a_container_has_ipv6_on_its_loopback_alone() {
    on_a_host_of_its_own(async |lab| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            eprintln!("SKIP: this kernel has no IPv6");
            return;
        }
        let network = lab.start().await;
        let (_, app) = web(&network).await;
        let addresses = inside(&app.netns, || run("ip", &["-6", "-o", "addr"]).unwrap());
        assert_eq!(addresses.lines().count(), 1, "{addresses}");
        assert!(addresses.contains("lo") && addresses.contains("::1/128"), "{addresses}");
        let routes = inside(&app.netns, || run("ip", &["-6", "route", "show", "table", "all"]).unwrap());
        assert!(routes.lines().all(|route| route.contains("dev lo")), "{routes}");
        let host = run("ip", &["-6", "addr", "show", "dev", &app.allocation.link]).unwrap();
        assert_eq!(host, "");
        inside(&app.netns, || {
            // Programs that listen on [::] are reached over IPv4 all the same.
            TcpListener::bind("[::]:5001").map(drop).unwrap();
            // What `localhost` means first to many programs.
            let listener = TcpListener::bind("[::1]:5002").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let socket = UdpSocket::bind("[::]:0").unwrap();
            for target in ["[2001:db8::1]:80", "[fd00::1]:80"] {
                let target: std::net::SocketAddr = target.parse().unwrap();
                assert!(socket.send_to(b"x", target).is_err(), "{target}");
            }
        });
    });
}

/// Somebody who could turn IPv6 on (the container's root cannot) would still be under the rules.
#[test]
fn what_speaks_ipv6_on_a_link_is_not_heard() {
    on_a_host_of_its_own(async |lab| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            eprintln!("SKIP: this kernel has no IPv6");
            return;
        }
        let network = lab.start().await;
        let (_, app) = web(&network).await;
        let turn_on = |interface: &str| {
            for (name, value) in [("accept_dad", "0"), ("addr_gen_mode", "0"), ("disable_ipv6", "0")] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value).unwrap();
            }
        };
        turn_on(&app.allocation.link);
        inside(&app.netns, move || {
            turn_on("eth0");
            // Both ends have one link-layer address, hence one link-local address.
            run("ip", &["-6", "addr", "add", "fe80::99/64", "dev", "eth0", "nodad"]).unwrap();
        });
        let (host, index) = link_local(&app.allocation.link);
        let receiver = UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 9, 0, 0)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        // To all nodes of the link; the host listens on its own address too, but that is also the sender's.
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        let send = move || {
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let own: Ipv6Addr = "fe80::99".parse().unwrap();
            let socket = UdpSocket::bind(SocketAddrV6::new(own, 0, 0, index)).unwrap();
            socket.send_to(b"x", SocketAddrV6::new(all, 9, 0, index)).unwrap();
        };
        inside(&app.netns, send);
        assert!(receiver.recv_from(&mut [0; 8]).is_err(), "heard by {host} on link {index}");
        // Without the rules it would be: the test can fail.
        run("nft", &["delete", "chain", "inet", "mogok_test", "origin"]).unwrap();
        run("nft", &["delete", "chain", "inet", "mogok_test", "input"]).unwrap();
        inside(&app.netns, send);
        receiver.recv_from(&mut [0; 8]).expect("heard without the rules");
    });
}
