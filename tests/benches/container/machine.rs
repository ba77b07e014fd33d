//! What is measured in a virtual machine: a container from nothing to nothing, beside runtimes that read OCI bundles.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use mogok_tests::bench::{Row, median, milliseconds};

use crate::engine::Engine;
use crate::namespace;
use crate::peers::Peers;

/// All four take a second and a half: everything is emulated.
const ROUNDS: usize = 40;

pub(super) fn rows(engine: &Engine, peers: &Peers) -> Result<Vec<Row>> {
    let mut ready = (0..ROUNDS).map(|_| namespace()).collect::<Result<Vec<_>>>()?;
    let mut times = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let netns = ready.pop().context("no namespace is left")?;
        // Who comes after runc finds the emulator's translations gone; so it is not always the same.
        let order = if round % 2 == 0 { [0, 1, 2, 3] } else { [3, 2, 1, 0] };
        for which in order {
            times[which].push(milliseconds(|| match which {
                0 => engine.once(Some(netns.as_fd())),
                1 => engine.once(None),
                2 => peers.bundle("crun", &format!("crun-{round}")),
                _ => peers.bundle("runc", &format!("runc-{round}")),
            })?);
        }
    }
    let [ours, own, crun, runc] = times.each_mut().map(|times| median(times));
    let figures = [
        ("create -> exec -> exit -> removed, no network", ours),
        ("the same, network namespace made on the way", own),
    ];
    let row = |(figure, ours)| {
        [("crun", crun), ("runc", runc)]
            .map(|(peer, value)| Row::against(figure, "ms", ours, peer, value, 1.0))
    };
    Ok(figures.into_iter().flat_map(row).collect())
}
