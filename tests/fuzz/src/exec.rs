//! Requests to execute a program in a container: an accepted one is the container's own spec but for what it may
//! change.

use mogok_shim::exec::asked_for;
use mogok_shim::protocol::exec::Exec;
use mogok_shim::spec::Spec;

use super::spec::accepted;

/// A spec as the agent writes it.
pub const SPEC: &str = include_str!("../seeds/spec/whole.json");

pub fn run(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Exec>(data) else { return };
    let spec: Spec = serde_json::from_str(SPEC).expect("the seed is a spec");
    let Ok(asked) = asked_for(spec.clone(), request) else { return };
    accepted(&asked);
    let kept = Spec {
        command: asked.command.clone(),
        env: asked.env.clone(),
        cwd: asked.cwd.clone(),
        uid: asked.uid,
        gid: asked.gid,
        ..spec
    };
    assert_eq!(kept, asked, "a request changed what it may not");
    assert!(asked.cwd.starts_with('/'));
}
