//! What a process of a release finds in its environment, apart from `PORT`, which the agent adds.
//!
//! A config var wins over the platform's defaults and never over its own names (`MOGOK_*`), which no
//! config var can have.

use std::collections::BTreeMap;

use mogok_api::id::InstanceId;
use mogok_api::name::ProcessName;

use crate::store::apps::AppRow;
use crate::store::releases::ReleaseRow;

/// Programs of the app and of its bundle come before those of the image.
const PATH: &str =
    "/app/bin:/app/vendor/bundle/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of one process of the release.
#[must_use]
pub fn release_env(
    app: &AppRow,
    release: &ReleaseRow,
    process: &ProcessName,
    instance: InstanceId,
) -> BTreeMap<String, String> {
    let defaults = [
        ("HOME", "/app"),
        ("LANG", "C.UTF-8"),
        ("PATH", PATH),
        ("RACK_ENV", "production"),
        ("RAILS_ENV", "production"),
        ("RAILS_LOG_TO_STDOUT", "enabled"),
        ("RAILS_SERVE_STATIC_FILES", "enabled"),
        ("SECRET_KEY_BASE", app.secret_key_base.as_str()),
    ];
    let own = [
        ("MOGOK_APP", app.name.to_string()),
        ("MOGOK_INSTANCE", instance.to_string()),
        ("MOGOK_PROCESS", process.to_string()),
        ("MOGOK_RELEASE", release.number.to_string()),
    ];
    let mut env: BTreeMap<String, String> =
        defaults.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    env.extend(release.config.iter().map(|(name, value)| (name.to_string(), value.clone())));
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    env
}

#[cfg(test)]
mod tests {
    use mogok_api::control::{Config, Formation};
    use mogok_api::id::{AppId, ReleaseId, UserId};
    use mogok_api::name::ReleaseNumber;

    use super::*;
    use crate::store::now;

    fn env_with(config: &[(&str, &str)]) -> BTreeMap<String, String> {
        let config: Config =
            config.iter().map(|(name, value)| (name.parse().unwrap(), (*value).to_owned())).collect();
        let release = ReleaseRow {
            id: ReleaseId::new(),
            app: AppId::new(),
            number: ReleaseNumber::new(12).unwrap(),
            created_at: now(),
            description: "build".to_owned(),
            commit: None,
            package: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            image: "ruby".parse().unwrap(),
            image_digest: None,
            processes: BTreeMap::new(),
            config,
        };
        let app = AppRow {
            id: release.app,
            name: "fugafuga".parse().unwrap(),
            owner: UserId::new(),
            created_at: now(),
            running: true,
            formation: Formation::new(),
            // What the next release will have, which must not leak into this one.
            config: [("LATER".parse().unwrap(), "x".to_owned())].into(),
            secret_key_base: "secret".to_owned(),
            current_release: Some(release.id),
            current_number: Some(release.number),
            destroying: false,
        };
        release_env(&app, &release, &"web.1".parse().unwrap(), InstanceId::new())
    }

    #[test]
    fn the_platforms_names_and_defaults_are_there_and_port_is_not() {
        let env = env_with(&[]);
        for (name, value) in [
            ("MOGOK_APP", "fugafuga"),
            ("MOGOK_PROCESS", "web.1"),
            ("MOGOK_RELEASE", "v12"),
            ("RAILS_ENV", "production"),
            ("SECRET_KEY_BASE", "secret"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(env.contains_key("MOGOK_INSTANCE"));
        assert!(!env.contains_key("PORT") && !env.contains_key("LATER"));
    }

    #[test]
    fn a_config_var_wins_over_a_default() {
        let env = env_with(&[("RAILS_ENV", "staging"), ("SECRET_KEY_BASE", "mine"), ("A", "b")]);
        assert_eq!((env["RAILS_ENV"].as_str(), env["SECRET_KEY_BASE"].as_str()), ("staging", "mine"));
        assert_eq!(env["A"], "b");
    }
}
