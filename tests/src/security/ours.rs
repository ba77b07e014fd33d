//! Our columns: containers on a real node, with another tenant beside and another machine behind a link,
//! all of which answer the host and must not answer the container.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};

use anyhow::{Context, Result};
use mogok_api::app::RestartPolicy;
use mogok_api::instance::{ContainerKind, InstanceSpec, Phase};

use super::elsewhere::Elsewhere;
use super::node::{Node, PATIENCE};
use super::{Column, HOST_PATHS, PROBE, bombs, exec, hostile, parse};
use crate::platform::bin_dir;
use crate::program::wait_until;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 1);
/// A port on which everything that must not answer listens.
const PORT: u16 = 7702;

/// Our columns, all on one node.
pub(super) fn columns() -> Result<Vec<Column>> {
    // The namespace belongs to this thread and to what it spawns.
    let made = std::thread::spawn(|| {
        crate::network::enter_own_namespace()?;
        let mut node = Node::start()?;
        let columns = look(&mut node);
        node.stop()?;
        columns
    });
    made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn look(node: &mut Node) -> Result<Vec<Column>> {
    node.image("probe", |_| Ok(()))?;
    let (_elsewhere, targets) = stage(node)?;
    let socket = format!("mogok-probe-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&UnixAddress::from_abstract_name(&socket)?)?;
    let environment = [
        ("PROBE_TARGETS".to_owned(), targets),
        ("PROBE_ABSTRACT".to_owned(), socket),
        ("PROBE_AGENT".to_owned(), node.dir.path().join("agent.sock").display().to_string()),
        (HOST_PATHS.to_owned(), format!("{}:{}", node.dir.path().display(), bin_dir().display())),
    ];
    let mut columns = Vec::new();
    for (name, kind) in [("mogok app", ContainerKind::App), ("mogok build", ContainerKind::Build)] {
        let mut spec = node.spec(kind, &[PROBE, "run"]);
        spec.env.extend(environment.clone());
        let ended = node.run(&spec)?;
        let mut findings = parse(ended.lines.iter().map(String::as_str))
            .with_context(|| format!("{name}: {:?}", ended.status))?;
        findings.extend(hostile::findings(node, kind)?);
        findings.extend(bombs::findings(node, kind)?);
        columns.push(Column { name, ours: true, findings });
    }
    columns.push(Column { name: "mogok exec", ours: true, findings: exec::findings(node, &environment)? });
    Ok(columns)
}

/// Everything that must not answer, each of which answers the host.
fn stage(node: &mut Node) -> Result<(Elsewhere, String)> {
    let tenant = InstanceSpec {
        process: "web.1".parse()?,
        listens: true,
        restart: RestartPolicy::Always,
        ..node
            .spec(ContainerKind::App, &["/bin/sh", "-c", "while true; do echo hello | nc -l -p $PORT; done"])
    };
    node.add(&tenant)?;
    let up = node.until(tenant.id, |status| status.phase == Phase::Up)?;
    let detail = node.detail(tenant.id)?;
    let address = detail.address.context("the neighbour has no address")?;
    let endpoint = up.endpoint.context("the neighbour has no port")?;

    let elsewhere = Elsewhere::new()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let targets: [(&str, SocketAddr); 7] = [
        ("host_loopback", ([127, 0, 0, 1], PORT).into()),
        ("gateway", (GATEWAY, PORT).into()),
        ("host_link", ([10, 99, 0, 1], PORT).into()),
        ("metadata", ([169, 254, 169, 254], PORT).into()),
        ("private_range", ([10, 99, 0, 2], PORT).into()),
        ("other_tenant", (address, 5000).into()),
        ("other_tenant_port", endpoint),
    ];
    for (name, target) in targets {
        if name != "other_tenant" {
            wait_until(&format!("{name} answers the host"), PATIENCE, || {
                TcpStream::connect_timeout(&target, PATIENCE).is_ok()
            })?;
        }
    }
    let text: Vec<String> = targets.iter().map(|(name, target)| format!("{name}={target}")).collect();
    Ok((elsewhere, text.join(" ")))
}
