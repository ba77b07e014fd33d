//! The container of a build, as the node is told: no secrets, capped in everything, run once.

use std::collections::BTreeMap;

use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
use mogok_api::id::InstanceId;
use mogok_api::instance::{BlobMount, ContainerKind, InstanceSpec, OutputFile, PackageMount};
use mogok_api::name::{AppName, Digest, ImageName, InvalidName, ProcessName};

use super::settings::BuildSettings;
use crate::store::builds::BuildRow;

/// The image that builds run on.
pub(super) const BUILD_IMAGE: &str = "ruby-build";
/// The image that what they make runs on.
pub(super) const RUN_IMAGE: &str = "ruby";
/// The build program of the image.
const PROGRAM: &str = "/usr/lib/mogok/build";
/// The process that a build's container is.
const PROCESS: &str = "build.1";
/// Seconds between SIGTERM and SIGKILL: a build has nothing to put in order.
const STOP_GRACE_S: u32 = 5;

/// What differs from build to build.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    pub(super) app: &'a AppName,
    pub(super) source: &'a Digest,
    /// The digest of the build image on the node, when the node has said it.
    pub(super) image: Option<&'a Digest>,
    /// The package of the build before it, made on the same image.
    pub(super) cache: Option<&'a Digest>,
    pub(super) gem_mirror: Option<&'a str>,
    pub(super) settings: &'a BuildSettings,
}

/// The spec of a new container.
///
/// # Errors
/// Never with the names above; they are parsed as any other.
pub(super) fn spec(wanted: &Wanted<'_>) -> Result<InstanceSpec, InvalidName> {
    let process: ProcessName = PROCESS.parse()?;
    let image: ImageName = BUILD_IMAGE.parse()?;
    let mut env: BTreeMap<String, String> = [
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("MOGOK_BUILD", "1"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    if let Some(mirror) = wanted.gem_mirror {
        env.insert("BUNDLE_MIRROR__ALL".to_owned(), mirror.to_owned());
    }
    Ok(InstanceSpec {
        id: InstanceId::new(),
        app: wanted.app.clone(),
        process,
        release: None,
        kind: ContainerKind::Build,
        image,
        image_digest: wanted.image.cloned(),
        package: None,
        package_mounts: wanted
            .cache
            .map(|digest| PackageMount { digest: digest.clone(), path: "/cache".to_owned() })
            .into_iter()
            .collect(),
        blobs: vec![BlobMount { digest: wanted.source.clone(), path: "/source.tar".to_owned() }],
        output: Some(OutputFile { path: "/output".to_owned(), max_bytes: wanted.settings.package_bytes }),
        command: vec![PROGRAM.to_owned()],
        env,
        limits: Limits::build(),
        grants: Default::default(),
        listens: false,
        health: HealthCheck::default(),
        restart: RestartPolicy::Never,
        stop_grace_s: STOP_GRACE_S,
        max_runtime_s: Some(wanted.settings.seconds),
    })
}

/// The package that a build may take gems from: that of the last success, when it was made on the same
/// image. Compiled gems of another image may not load on this one.
pub(super) fn cache<'a>(last: Option<&'a BuildRow>, image: Option<&Digest>) -> Option<&'a Digest> {
    let last = last?;
    let before = last.handed.as_ref()?.spec.image_digest.as_ref()?;
    last.package.as_ref().filter(|_| image == Some(before))
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use mogok_api::control::BuildState;
    use mogok_api::id::{AppId, BuildId, NodeId};

    use super::*;
    use crate::store::builds::Handed;

    fn digest(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
    }

    fn made(image: Option<&Digest>, cache: Option<&Digest>) -> InstanceSpec {
        let settings =
            BuildSettings { concurrency: 1, source_bytes: 1, package_bytes: 500_000_000, seconds: 900 };
        let wanted = Wanted {
            app: &"fugafuga".parse().unwrap(),
            source: &digest('a'),
            image,
            cache,
            gem_mirror: Some("http://10.88.0.1:9999"),
            settings: &settings,
        };
        spec(&wanted).unwrap()
    }

    #[test]
    fn a_build_is_capped_runs_once_and_knows_no_secret() {
        let spec = made(Some(&digest('b')), Some(&digest('c')));
        assert_eq!(
            (spec.kind, spec.restart, spec.listens),
            (ContainerKind::Build, RestartPolicy::Never, false)
        );
        assert_eq!((spec.max_runtime_s, spec.output.as_ref().unwrap().max_bytes), (Some(900), 500_000_000));
        assert_eq!(spec.blobs, [BlobMount { digest: digest('a'), path: "/source.tar".to_owned() }]);
        assert_eq!(spec.package_mounts, [PackageMount { digest: digest('c'), path: "/cache".to_owned() }]);
        let names: Vec<_> = spec.env.keys().map(String::as_str).collect();
        assert_eq!(names, ["BUNDLE_MIRROR__ALL", "HOME", "LANG", "MOGOK_BUILD", "PATH"]);
    }

    #[test]
    fn only_the_package_of_the_same_image_is_a_cache() {
        let last = |image: Option<&Digest>| BuildRow {
            id: BuildId::new(),
            app: AppId::new(),
            state: BuildState::Succeeded,
            commit: String::new(),
            created_at: Utc::now(),
            started_at: None,
            ended_at: None,
            cancel_requested: false,
            reason: None,
            release: None,
            package: Some(digest('e')),
            package_bytes: None,
            handed: Some(Handed { node: NodeId::new(), spec: made(image, None), processes: BTreeMap::new() }),
        };
        let (b, c) = (digest('b'), digest('c'));
        assert_eq!(cache(Some(&last(Some(&b))), Some(&b)), Some(&digest('e')));
        assert_eq!(cache(Some(&last(Some(&b))), Some(&c)), None);
        assert_eq!(cache(Some(&last(None)), None), None);
        assert_eq!(cache(None, Some(&b)), None);
    }
}
