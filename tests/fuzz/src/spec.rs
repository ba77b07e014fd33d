//! Specs: what is accepted keeps the rules that the sandbox rests on.

use mogok_shim::spec::Spec;

pub fn run(data: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    match spec.check() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(()) => accepted(&spec),
    }
    let again = serde_json::to_vec(&spec).expect("a spec is JSON");
    assert_eq!(serde_json::from_slice::<Spec>(&again).expect("its own JSON"), spec);
}

/// Panics when a spec that was accepted should not have been.
pub fn accepted(spec: &Spec) {
    assert!(spec.uid > 0 && spec.uid < 65_535 && spec.gid > 0 && spec.gid < 65_535);
    assert!(spec.id_base >= 65_536 && spec.id_base.checked_add(65_535).is_some());
    assert!(!spec.layers.is_empty() && spec.command[0].starts_with('/'));
    let targets = spec.binds.iter().map(|bind| &bind.target).chain(spec.files.iter().map(|file| &file.path));
    for path in targets {
        assert!(path.starts_with('/') && !path.contains('\0'), "{path:?}");
        let first = path.split('/').find(|part| !part.is_empty());
        assert!(!matches!(first, Some("proc" | "sys" | "dev")), "{path:?}");
        assert!(path.split('/').all(|part| part != ".."), "{path:?}");
    }
    for text in spec.command.iter().chain(&spec.env) {
        assert!(!text.contains('\0'), "{text:?}");
    }
}
