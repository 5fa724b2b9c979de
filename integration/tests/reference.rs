//! `docs/configuration.md` is what the doc comments and defaults of the configuration's types say.
//!
//! After a change of a key, its comment or its default, write the page anew with
//! `MERIT_REGENERATE=1 cargo test -p merit-integration --features merit-sidecar/full --test reference`.
//!
//! The types are read from the sources, from `config::Config` on; a key without a comment, and an attribute of serde
//! that changes what a key is called and is not known here, fail. Defaults are those that the code has, serialised.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use merit_sidecar::{bus::BusConfig, config::Config, ingest::feed};
use serde_json::{Value, json};
use syn::{Attribute, Expr, Field, Fields, GenericArgument, Item, Lit, Meta, PathArguments, Type};

/// What stands above the tables.
const HEAD: &str = "\
# Configuration

Every key of `merit.toml`, made from the sources by `integration/tests/reference.rs`: do not edit it by hand.

A value comes from the first that names it: the environment (`MERIT__STORE__URL` is `url` of `[store]`), the file, the default.
`merit check-config` reads a file as `merit run` does and says every fault of it at once, with its path. An unknown key is a
fault. Secrets never stand in the file: keys that end in `_env` name the variable that holds one, keys that
end in `_file` the file.

A *duration* is a whole number and a unit: `20ms`, `5s`, `1m`, `2h`, `7d`. Under *default*, *–* is a key that is not set, and
**required** one that must be.

`bucket_files`, before the first table, is a list of paths: each file is a bucket in JSON, with the keys of `[[bucket]]`. A path is
relative to the configuration's folder, and the file's name may hold one `*`.
";

/// A type that configuration is made of, and the module that it stands in, as `ingest::feed`.
struct Known {
    module: String,
    item: Item,
}

struct Sources(Vec<Known>);

/// A key and what its values may be.
struct Shape<'a> {
    /// How the reader is told.
    text: String,
    /// The table that the key is, and whether it is a list of them.
    table: Option<(&'a Known, bool)>,
    /// Whether it may be left out whatever serde says.
    optional: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Sources {
    fn read() -> Self {
        let mut known = Vec::new();
        for package in ["sidecar/src", "middleware/src"] {
            let folder = root().join(package);
            let mut files = Vec::new();
            collect(&folder, &mut files);
            files.sort();
            for file in files {
                let module = module_of(file.strip_prefix(&folder).expect("it is below"));
                let text = std::fs::read_to_string(&file).expect("a source is text");
                let parsed = syn::parse_file(&text)
                    .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                let types = parsed.items.into_iter().filter(|item| {
                    let attributes = match item {
                        Item::Struct(found) => &found.attrs,
                        Item::Enum(found) => &found.attrs,
                        _ => return false,
                    };
                    derives_serde(attributes)
                });
                known.extend(types.map(|item| Known { module: module.clone(), item }));
            }
        }
        Self(known)
    }

    /// Returns the type that `path` names in `module`: the one of this name whose module ends as the path says, the
    /// nearest to `module` when there are several.
    fn find(&self, path: &[String], module: &str) -> &Known {
        let (name, before) = path.split_last().expect("a path has a name");
        let before: Vec<&str> =
            before.iter().map(String::as_str).filter(|part| *part != "config").collect();
        let fits = |known: &&Known| {
            let parts: Vec<&str> = known.module.split("::").collect();
            name_of(&known.item) == *name && parts.ends_with(&before)
        };
        let near = |known: &&Known| {
            let pairs = known.module.split("::").zip(module.split("::"));
            // The longest way together, and from there on the shortest alone.
            let together = pairs.take_while(|(one, other)| one == other).count();
            (together, std::cmp::Reverse(known.module.split("::").count()))
        };
        let found: Vec<&Known> = self.0.iter().filter(fits).collect();
        let best = found.iter().copied().max_by_key(near);
        let best = best.unwrap_or_else(|| panic!("{module} names {path:?}, which is no type here"));
        let alike = found.iter().filter(|known| near(known) == near(&best)).count();
        assert_eq!(alike, 1, "{module} names {path:?}, which may be several");
        best
    }

    fn shape<'a>(&'a self, kind: &Type, module: &str) -> Shape<'a> {
        let Type::Path(path) = kind else { panic!("{module}: a key has a type without a name") };
        let parts: Vec<String> = path.path.segments.iter().map(|s| s.ident.to_string()).collect();
        let arguments: Vec<&Type> = match &path.path.segments.last().expect("a name").arguments {
            PathArguments::AngleBracketed(list) => list
                .args
                .iter()
                .filter_map(|argument| match argument {
                    GenericArgument::Type(kind) => Some(kind),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        let plain = |text: &str| Shape { text: text.to_owned(), table: None, optional: false };
        match parts.last().expect("a name").as_str() {
            "String" => plain("text"),
            "bool" => plain("`true` or `false`"),
            "f64" | "f32" => plain("number"),
            "usize" | "u64" | "u32" | "u16" | "u8" => plain("whole number"),
            "NonZeroU32" => plain("whole number from 1"),
            "Duration" => plain("duration"),
            "PathBuf" => plain("path of a file"),
            "SocketAddr" => plain("`address:port`"),
            "Address" => plain("URL"),
            "Variable" => plain("name of a variable"),
            "File" => plain("path of a file with a secret"),
            "Option" => Shape { optional: true, ..self.shape(arguments[0], module) },
            "Box" => self.shape(arguments[0], module),
            "Vec" => {
                let of = self.shape(arguments[0], module);
                let text = format!("list of {}", of.text);
                Shape { text, table: of.table.map(|(known, _)| (known, true)), ..of }
            }
            "BTreeMap" => {
                let of = self.shape(arguments[1], module);
                let keys = of.table.map(|(known, _)| format!(" with {}", keys_of(known)));
                let text = format!("table of names to {}{}", of.text, keys.unwrap_or_default());
                Shape { text, table: None, optional: false }
            }
            _ => {
                let known = self.find(&parts, module);
                match &known.item {
                    Item::Enum(found) if found.variants.iter().all(|v| v.fields.is_empty()) => {
                        let rule = rename_all(&found.attrs);
                        let name = |variant: &syn::Variant| {
                            format!("`{}`", renamed(&variant.ident.to_string(), &rule))
                        };
                        let names: Vec<String> = found.variants.iter().map(name).collect();
                        plain(&names.join(", "))
                    }
                    _ => Shape {
                        text: "table".to_owned(),
                        table: Some((known, false)),
                        optional: false,
                    },
                }
            }
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("sources are there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Returns the module of a source; `config.rs` counts as the module that it is the configuration of.
fn module_of(file: &Path) -> String {
    let file = file.with_extension("");
    let mut parts: Vec<&str> =
        file.iter().map(|part| part.to_str().expect("a source has a plain name")).collect();
    if parts.last() == Some(&"mod") || (parts.len() > 1 && parts.last() == Some(&"config")) {
        parts.pop();
    }
    parts.join("::")
}

fn name_of(item: &Item) -> String {
    match item {
        Item::Struct(found) => found.ident.to_string(),
        Item::Enum(found) => found.ident.to_string(),
        _ => String::new(),
    }
}

fn derives_serde(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else { return false };
        let names = list.tokens.to_string();
        list.path.is_ident("derive")
            && (names.contains("Deserialize") || names.contains("Serialize"))
    })
}

/// Returns what the attributes `#[serde(…)]` say, name by name.
fn serde_of(attributes: &[Attribute]) -> BTreeMap<String, Option<String>> {
    let mut said = BTreeMap::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let read = attribute.parse_nested_meta(|meta| {
            let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            let value = match meta.value() {
                Ok(value) => Some(value.parse::<syn::LitStr>()?.value()),
                Err(_) => None,
            };
            said.insert(name, value);
            Ok(())
        });
        read.expect("serde's attributes are names and texts");
    }
    said
}

fn rename_all(attributes: &[Attribute]) -> String {
    serde_of(attributes).remove("rename_all").flatten().unwrap_or_default()
}

fn renamed(name: &str, rule: &str) -> String {
    let between = match rule {
        "lowercase" => "",
        "snake_case" => "_",
        "kebab-case" => "-",
        other => panic!("{name}: the rule {other:?} is not known here"),
    };
    let mut text = String::new();
    for (index, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && index > 0 {
            text.push_str(between);
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Returns the doc comment as one paragraph, its links to code as code.
fn docs(attributes: &[Attribute]) -> String {
    let mut words = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        let Meta::NameValue(doc) = &attribute.meta else { continue };
        let Expr::Lit(literal) = &doc.value else { continue };
        let Lit::Str(line) = &literal.lit else { continue };
        words.extend(line.value().split_whitespace().map(str::to_owned));
    }
    // [`Config::collector_rate`] is the key `collector_rate` to whoever reads this page.
    let text = words.join(" ").replace("[`Config::", "`").replace("[`", "`").replace("`]", "`");
    text.replace('|', "\\|")
}

fn fields(known: &Known) -> Vec<(String, &Field)> {
    let Item::Struct(found) = &known.item else { panic!("{} is no table", name_of(&known.item)) };
    let Fields::Named(named) = &found.fields else { panic!("{} is no table", found.ident) };
    let mut keys = Vec::new();
    for field in &named.named {
        let name = field.ident.as_ref().expect("a named field").to_string();
        for (said, _) in serde_of(&field.attrs) {
            let harmless = ["default", "with", "skip_serializing_if", "skip_serializing"];
            let known = harmless.contains(&said.as_str());
            assert!(known, "{}.{name}: serde({said}) is not known here", found.ident);
        }
        // What is read only to be refused is no key.
        if !serde_of(&field.attrs).contains_key("skip_serializing") {
            keys.push((name, field));
        }
    }
    keys
}

fn keys_of(known: &Known) -> String {
    let keys: Vec<String> =
        fields(known).into_iter().map(|(name, _)| format!("`{name}`")).collect();
    keys.join(" or ")
}

/// Returns `value` as TOML has it.
fn toml(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::Array(items) if items.is_empty() => "`[]`".to_owned(),
        Value::Object(members) if members.is_empty() => "`{}`".to_owned(),
        Value::Number(number) if number.is_f64() => {
            // A number of 32 bits says no more than its shortest text.
            #[allow(clippy::cast_possible_truncation, reason = "checked to be the same")]
            let short = number.as_f64().map(|number| number as f32);
            match short.filter(|short| number.as_f64() == Some(f64::from(*short))) {
                Some(short) => format!("`{short:?}`"),
                None => format!("`{number}`"),
            }
        }
        other => format!("`{other}`"),
    }
}

/// Writes the section of the table `name` and of those below it. `defaults` is what the table is when it is empty;
/// nothing when it cannot be.
fn write_table(
    page: &mut String,
    sources: &Sources,
    (name, list): (&str, bool),
    known: &Known,
    defaults: Option<&Value>,
) {
    let Item::Struct(found) = &known.item else { panic!("{name} is no table") };
    let heading = if list { format!("[[{name}]]") } else { format!("[{name}]") };
    let (about, empty) = (docs(&found.attrs), format!("`{heading}`."));
    let _ = write!(page, "\n## `{heading}`\n\n");
    if about != empty && !about.is_empty() {
        let _ = write!(page, "{about}\n\n");
    }
    page.push_str("| key | values | default | |\n| --- | --- | --- | --- |\n");
    write_keys(page, sources, (name, list), known, defaults);
}

/// Writes a row for each key that is no table, then the tables.
fn write_keys(
    page: &mut String,
    sources: &Sources,
    (name, _): (&str, bool),
    known: &Known,
    defaults: Option<&Value>,
) {
    let mut tables = Vec::new();
    let fields = fields(known);
    for (key, field) in &fields {
        let (shape, said) = (sources.shape(&field.ty, &known.module), serde_of(&field.attrs));
        let about = docs(&field.attrs);
        assert!(!about.is_empty(), "{name}.{key} has no comment");
        let default = defaults.and_then(|table| table.get(key));
        if let Some((table, list)) = shape.table {
            tables.push((format!("{name}.{key}"), list, table, default));
            let place = if list { format!("[[{name}.{key}]]") } else { format!("[{name}.{key}]") };
            let _ = writeln!(page, "| `{key}` | table, see `{place}` | – | {about} |");
            continue;
        }
        let shown = match (default, said.get("default")) {
            (Some(value), _) => toml(value),
            (None, _) if shape.optional => "–".to_owned(),
            (None, Some(None)) if shape.text.starts_with("list") => "`[]`".to_owned(),
            (None, Some(None)) if shape.text.starts_with("`true`") => "`false`".to_owned(),
            // Its comment says which: a function of ours makes it.
            (None, Some(Some(_))) => "see right".to_owned(),
            (None, Some(None)) => panic!("{name}.{key}: its default is not known here"),
            (None, None) => "**required**".to_owned(),
        };
        let _ = writeln!(page, "| `{key}` | {} | {shown} | {about} |", shape.text);
    }
    // Whatever serde writes is a key of this page.
    for (key, _) in defaults.and_then(Value::as_object).into_iter().flatten() {
        let known = fields.iter().any(|(name, _)| name == key);
        assert!(known || key == "kind", "{name}.{key} is written and not read");
    }
    for (name, list, table, default) in tables {
        let made = default.filter(|value| value.is_object()).cloned();
        write_table(page, sources, (&name, list), table, made.or_else(|| own(&name)).as_ref());
    }
}

/// Returns the defaults of tables that are not there unless somebody writes them.
fn own(name: &str) -> Option<Value> {
    match name {
        "feed" => serde_json::to_value(feed::Config::default()).ok(),
        "bus.schema_registry" => {
            let registry = json!({"kind": "kafka", "schema_registry": {}});
            let bus: BusConfig = serde_json::from_value(registry).expect("an empty table is one");
            serde_json::to_value(bus).ok()?.get("schema_registry").cloned()
        }
        _ => None,
    }
}

fn generate() -> String {
    let sources = Sources::read();
    let config = sources.find(&["Config".to_owned()], "config");
    assert_eq!(config.module, "config");
    let defaults = serde_json::to_value(Config::default()).expect("configuration can be written");
    let mut page = HEAD.to_owned();
    for (name, field) in fields(config) {
        if name == "bus" {
            write_buses(&mut page, &sources, &docs(&field.attrs));
            continue;
        }
        let (known, list) = sources.shape(&field.ty, "config").table.expect("tables at the top");
        let own = own(&name);
        let default = defaults.get(&name).filter(|value| value.is_object()).or(own.as_ref());
        write_table(&mut page, &sources, (&name, list), known, default);
    }
    page
}

/// Writes the table `[bus]`, whose keys depend on its `kind`.
fn write_buses(page: &mut String, sources: &Sources, about: &str) {
    let known = sources.find(&["BusConfig".to_owned()], "bus");
    let Item::Enum(kinds) = &known.item else { panic!("the bus is one of several") };
    let rule = rename_all(&kinds.attrs);
    let _ = write!(page, "\n## `[bus]`\n\n{about} Its other keys depend on `kind`:\n\n");
    page.push_str("| `kind` | |\n| --- | --- |\n");
    let named = |variant: &syn::Variant| renamed(&variant.ident.to_string(), &rule);
    for variant in &kinds.variants {
        let _ = writeln!(page, "| `{}` | {} |", named(variant), docs(&variant.attrs));
    }
    for variant in &kinds.variants {
        let (kind, field) = (named(variant), variant.fields.iter().next().expect("its table"));
        let bus: BusConfig =
            serde_json::from_value(json!({ "kind": kind })).expect("every key has a default");
        let defaults = serde_json::to_value(bus).expect("configuration can be written");
        let (table, _) = sources.shape(&field.ty, &known.module).table.expect("a table");
        let _ = write!(page, "\n## `[bus]` with `kind = \"{kind}\"`\n\n");
        page.push_str("| key | values | default | |\n| --- | --- | --- | --- |\n");
        write_keys(page, sources, ("bus", false), table, Some(&defaults));
    }
}

#[test]
fn the_page_is_what_the_code_says_of_its_configuration() {
    let path = root().join("docs/configuration.md");
    let expected = generate();
    if std::env::var_os("MERIT_REGENERATE").is_some() {
        std::fs::write(&path, &expected).expect("the folder can be written to");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == expected,
        "docs/configuration.md is not what the code says; see the first lines of this test"
    );
}

/// Keys of the page, as `table.key`.
fn keys_on_the_page() -> Vec<(String, String)> {
    let page = generate();
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## `[") {
            let name = heading.split(']').next().unwrap_or_default();
            table = name.trim_start_matches('[').to_owned();
            if let Some((_, kind)) = heading.split_once("kind = \"") {
                table = format!("{table}:{}", kind.trim_end_matches("\"`"));
            }
        } else if let Some(row) = line.strip_prefix("| `")
            && let Some((key, rest)) = row.split_once("` | ")
            && !rest.is_empty()
        {
            keys.push((table.clone(), key.to_owned()));
        }
    }
    keys
}

#[test]
fn every_key_of_the_page_is_one_that_merit_reads() {
    let folder = merit_integration::Folder::new("reference");
    let keys = keys_on_the_page();
    assert!(keys.len() > 150, "{} keys", keys.len());
    for (table, key) in keys {
        // The kinds themselves; and what stands in tables that only exist whole.
        if table == "bus" || ["bucket", "route", "route.cost_header"].contains(&table.as_str()) {
            continue;
        }
        let (name, kind) = table.split_once(':').unwrap_or((&table, ""));
        let kind = match kind {
            "" if name == "bus.schema_registry" => "[bus]\nkind = \"kafka\"\n".to_owned(),
            "" => String::new(),
            kind => format!("[bus]\nkind = \"{kind}\"\n"),
        };
        let header =
            if kind.is_empty() || name != "bus" { format!("[{name}]\n") } else { String::new() };
        // A value that nothing takes: the fault is the value's then, and not that of a key nobody knows.
        let text = format!("{kind}{header}{key} = [[[]]]\n");
        let file = folder.write("merit.toml", &text);
        let told = Config::load(&file, merit_sidecar::config::Role::All)
            .expect_err("a list of lists is no value")
            .to_string();
        assert!(!told.contains("unknown"), "[{table}] {key}: {told}");
        // Of the bus the kind is read first, and the table with it as one.
        let table_at_fault = name.split('.').next().expect("a table has a name");
        assert!(told.contains(table_at_fault), "[{table}] {key}: {told}");
    }
}
