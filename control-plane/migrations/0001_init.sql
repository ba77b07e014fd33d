-- The wanted state of the platform. One dialect for SQLite and PostgreSQL: ids and enums are text,
-- times are microseconds since the epoch in BIGINT, documents are JSON in text, flags are 0 or 1.

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    plan TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- SHA-256 of the secret: a token is random, so a fast hash is enough.
    secret_hash TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT
);
CREATE INDEX tokens_user ON tokens (user_id);

CREATE TABLE apps (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL REFERENCES users (id),
    created_at BIGINT NOT NULL,
    -- Wanted to run?
    running BIGINT NOT NULL DEFAULT 0,
    -- JSON object: process type -> count.
    formation TEXT NOT NULL DEFAULT '{"web":1}',
    -- JSON object: config var -> value, the next release's snapshot.
    config TEXT NOT NULL DEFAULT '{}',
    secret_key_base TEXT NOT NULL,
    current_release TEXT,
    -- Set when the app is being destroyed: its instances are stopped, then everything of it is removed.
    destroying BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX apps_user ON apps (user_id);

CREATE TABLE builds (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    state TEXT NOT NULL,
    commit_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    cancel_requested BIGINT NOT NULL DEFAULT 0,
    reason TEXT,
    release_number BIGINT,
    package TEXT,
    package_bytes BIGINT,
    -- The build container, once it was handed to a node.
    instance_id TEXT,
    node_id TEXT,
    -- The container's complete spec as JSON, so that a restarted control plane hands the same one over.
    spec TEXT,
    -- JSON object: process type -> command line, as the commit says; they become the release's.
    processes TEXT
);
CREATE INDEX builds_app ON builds (app_id, created_at);
-- One build at a time per app.
CREATE UNIQUE INDEX builds_running ON builds (app_id) WHERE state IN ('queued', 'running');

CREATE TABLE releases (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    description TEXT NOT NULL,
    commit_hash TEXT,
    package TEXT NOT NULL,
    image TEXT NOT NULL,
    image_digest TEXT,
    -- JSON object: process type -> command line.
    processes TEXT NOT NULL,
    -- JSON object: the config vars of this release.
    config TEXT NOT NULL,
    UNIQUE (app_id, number)
);

CREATE TABLE deploys (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    state TEXT NOT NULL,
    action TEXT NOT NULL,
    release_id TEXT,
    created_at BIGINT NOT NULL,
    ended_at BIGINT,
    message TEXT
);
CREATE INDEX deploys_app ON deploys (app_id, created_at);

CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    -- unix:/path or https://host:port
    address TEXT NOT NULL,
    -- What the operator wants of it: active, cordoned, draining.
    policy TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id),
    release_id TEXT NOT NULL REFERENCES releases (id),
    deploy_id TEXT,
    process_type TEXT NOT NULL,
    process_index BIGINT NOT NULL,
    node_id TEXT NOT NULL REFERENCES nodes (id),
    -- run: on the node, routed when up. unroute: out of the table, waiting for every router.
    -- stop: out of the node's wanted set, until the agent says it is removed; then the row goes.
    wanted TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX instances_app ON instances (app_id);
