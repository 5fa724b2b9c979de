//! Modules import only what DESIGN section 2 lets them.
//!
//! Read from the sources: every path that begins with `crate::` (in a `use`, grouped or not, or in
//! the middle of code) and every name of a crate. Tests inside a module may reach further.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// What every module of `middleware` may name besides its row: the root type and the answers.
const MIDDLEWARE_ROOT: &[&str] = &["AgentId", "AgentIdError", "AGENT_ID_MAX", "agent"];

/// Module, what it may import of its own crate.
const MIDDLEWARE: &[(&str, &[&str])] = &[
    ("agent", &[]),
    ("bucket", &[]),
    ("store", &["bucket"]),
    ("identity", &["problem"]),
    ("problem", &[]),
    ("outage", &["bucket", "store"]),
    ("admission", &["bucket", "store", "identity", "outage", "receipt", "problem"]),
    ("receipt", &[]),
    ("retry_after", &[]),
];

const SIDECAR: &[(&str, &[&str])] = &[
    ("address", &[]),
    ("causes", &[]),
    ("clock", &[]),
    ("secret", &[]),
    ("outbound", &[]),
    // Spans are everybody's, and know nobody.
    ("trace", &["clock"]),
    ("grpc_health", &[]),
    // Buckets of the middleware's, by name.
    ("quota", &[]),
    ("shares", &[]),
    ("rating", &["trace"]),
    ("bus", &["rating", "secret", "outbound", "clock", "causes", "trace"]),
    (
        "ingest",
        &[
            "causes",
            "rating",
            "bus",
            "secret",
            "outbound",
            "clock",
            "trace",
            "grpc_health",
            "quota",
            "shares",
        ],
    ),
    ("policy", &["rating"]),
    // The files of policies that learn: policies themselves know none.
    ("checkpoint", &["policy"]),
    ("decisions", &[]),
    ("figure", &[]),
    ("replay", &["policy", "personalize", "rating", "decisions", "figure"]),
    ("tuner", &["bus", "causes", "checkpoint", "policy", "decisions", "rating", "clock", "trace"]),
    ("gateway", &["bus", "clock", "shares", "trace"]),
    // Admission is all it has of Merit: what it answers is what the layer answers.
    ("rls", &["grpc_health"]),
    // It follows the bus beside the tuners, and its checkpoints are files.
    ("personalize", &["bus", "causes", "checkpoint", "clock", "quota", "rating"]),
    ("openapi", &[]),
    ("admin", &["bus", "causes", "clock", "openapi", "policy", "tuner", "rating", "secret"]),
    // A client of `admin` over HTTP: it knows nothing of the other side but docs/admin.md.
    ("operator", &["bus", "causes", "clock", "outbound", "secret"]),
    ("simulate", &["checkpoint", "figure", "policy", "rating"]),
    ("telemetry", &[]),
    (
        "config",
        &[
            "address",
            "rating",
            "bus",
            "ingest",
            "policy",
            "tuner",
            "gateway",
            "rls",
            "personalize",
            "admin",
            "secret",
            "telemetry",
            "trace",
        ],
    ),
];

/// Crates that a pure module has no business with, and the clock and environment of `std`.
const IMPURE: &[&str] = &[
    "tokio",
    "redis",
    "rdkafka",
    "http",
    "hyper",
    "hyper_util",
    "axum",
    "tower",
    "reqwest",
    "figment",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::env",
    "std::net",
    "std::fs",
    "std::thread",
];

/// Returns the source without comments, strings and test modules.
fn code(source: &str) -> String {
    let mut code = String::new();
    for line in source.lines() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        for (n, part) in line.split('"').enumerate() {
            if n % 2 == 0 {
                code.push_str(part);
            }
        }
        code.push('\n');
    }
    code
}

/// Returns every path below `prefix::` that the code names, with groups spelled out.
fn paths(code: &str, prefix: &str) -> BTreeSet<String> {
    let start = format!("{prefix}::");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(&start) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "_:$".contains(c)) {
            continue;
        }
        spell_out(&code[at + start.len()..], "", &mut found);
    }
    found
}

/// Reads one path or group at the start of `text`; returns how much of it that was.
fn spell_out(text: &str, base: &str, found: &mut BTreeSet<String>) -> usize {
    let trimmed = text.trim_start();
    let skipped = text.len() - trimmed.len();
    if let Some(group) = trimmed.strip_prefix('{') {
        let mut at = 0;
        loop {
            at += spell_out(&group[at..], base, found);
            let rest = group[at..].trim_start();
            at = group.len() - rest.len();
            match rest.chars().next() {
                Some(',') => at += 1,
                Some('}') => return skipped + 1 + at + 1,
                _ => return text.len(),
            }
        }
    }
    let name_end = trimmed
        .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
        .unwrap_or(trimmed.len());
    let (name, rest) = trimmed.split_at(name_end);
    if name.is_empty() {
        return skipped;
    }
    let path = if base.is_empty() { name.to_owned() } else { format!("{base}::{name}") };
    if let Some(deeper) = rest.strip_prefix("::") {
        return skipped + name_end + 2 + spell_out(deeper, &path, found);
    }
    found.insert(path);
    let renamed = rest.strip_prefix(" as ").map_or(0, |alias| {
        4 + alias.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(alias.len())
    });
    skipped + name_end + renamed
}

/// Returns every source file below `folder` with the module it belongs to.
fn sources(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("the sources are there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(folder).expect("it was found there");
                let module = inside.components().next().expect("a file has a name");
                let module =
                    module.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
                files.insert(path, module);
            }
        }
    }
    assert!(!files.is_empty());
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Modules that may import anything of their crate: its roots.
const ROOTS: &[&str] = &["lib", "main", "app", "cli"];

fn forbidden(folder: &str, table: &[(&str, &[&str])], everyone: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for (file, module) in sources(&root().join(folder)) {
        let source = std::fs::read_to_string(&file).expect("the source is text");
        let imported = paths(&code(&source), "crate");
        if ROOTS.contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = table.iter().find(|(name, _)| *name == module) else {
            faults.push(format!("{}: module {module} has no row in the table", file.display()));
            continue;
        };
        for path in imported {
            let target = path.split("::").next().unwrap_or_default();
            if target != module && !allowed.contains(&target) && !everyone.contains(&target) {
                faults.push(format!("{}: {module} imports crate::{path}", file.display()));
            }
        }
    }
    faults
}

#[test]
fn the_middleware_imports_in_one_direction() {
    let faults = forbidden("middleware/src", MIDDLEWARE, MIDDLEWARE_ROOT);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_sidecar_imports_in_one_direction() {
    let faults = forbidden("sidecar/src", SIDECAR, &[]);
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Returns the faults of `module`: paths below the crate `tower_merit` that `allowed` does not hold.
fn reach(module: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (file, owner) in sources(&root().join("sidecar/src")) {
        if owner == module {
            let source = std::fs::read_to_string(&file).expect("the source is text");
            let reached = paths(&code(&source), "tower_merit");
            let wrong = reached.into_iter().filter(|path| !allowed(path));
            faults.extend(wrong.map(|path| format!("{}: tower_merit::{path}", file.display())));
        }
    }
    faults
}

#[test]
fn the_halves_meet_only_where_the_table_says() {
    let agent = |path: &str| ["AgentId", "AgentIdError", "AGENT_ID_MAX"].contains(&path);
    let policy = |path: &str| path.starts_with("bucket") || agent(path);
    let bus = |_: &str| false;
    // The tuner writes limits and never spends: of the store it sees the control plane's half.
    let spends = ["Spend", "Charge", "Verdict", "Take"];
    let tuner = |path: &str| {
        let last = path.rsplit("::").next().unwrap_or_default();
        agent(path)
            || path.starts_with("bucket")
            || path == "Tune"
            || (path.starts_with("store") && !spends.contains(&last))
            || last == "RedisStore"
            || last == "MemoryStore"
    };
    let faults: Vec<String> = [
        reach("rating", agent),
        reach("bus", bus),
        reach("policy", policy),
        reach("decisions", agent),
        reach("replay", policy),
        reach("tuner", tuner),
    ]
    .concat();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn admission_spends_and_never_sets_limits() {
    let mut faults = Vec::new();
    for (file, module) in sources(&root().join("middleware/src")) {
        if module == "admission" || module == "outage" {
            let source = std::fs::read_to_string(&file).expect("the source is text");
            let reached = paths(&code(&source), "crate");
            let tunes = |path: &&String| path.ends_with("::Tune") || path.ends_with("::Change");
            faults.extend(
                reached.iter().filter(tunes).map(|path| format!("{}: {path}", file.display())),
            );
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn policies_and_arithmetic_are_pure() {
    let mut faults = Vec::new();
    let pure = [
        ("middleware/src", "bucket"),
        ("sidecar/src", "policy"),
        ("sidecar/src/personalize", "model"),
        ("sidecar/src/personalize", "prequential"),
    ];
    for (folder, module) in pure {
        for (file, owner) in sources(&root().join(folder)) {
            if owner != module {
                continue;
            }
            let source = std::fs::read_to_string(&file).expect("the source is text");
            let code = code(&source);
            for name in IMPURE {
                let (first, rest) = name.split_once("::").unwrap_or((name, ""));
                let reached = paths(&code, first);
                if reached.iter().any(|path| path.starts_with(rest)) {
                    faults.push(format!("{}: {name}", file.display()));
                }
            }
            if code.contains("async ") {
                faults.push(format!("{}: async", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn only_main_imports_app() {
    let mut faults = Vec::new();
    for (file, module) in sources(&root().join("sidecar/src")) {
        if ["app", "main", "lib", "cli"].contains(&module.as_str()) {
            continue;
        }
        let source = std::fs::read_to_string(&file).expect("the source is text");
        if paths(&code(&source), "crate").iter().any(|path| path.split("::").next() == Some("app"))
        {
            faults.push(file.display().to_string());
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn groups_renames_and_comments_are_read_as_the_compiler_reads_them() {
    let source = "use crate::{a::{B, c::D}, e as f, g::*};\n// crate::comment\nlet x = crate::h::i(\"crate::text\");\n$crate::macros;\n#[cfg(test)]\nmod tests { use crate::test_only; }";
    let read = paths(&code(source), "crate");
    let expected = ["a::B", "a::c::D", "e", "g::*", "h::i"].map(str::to_owned);
    assert_eq!(read, expected.into());
}
