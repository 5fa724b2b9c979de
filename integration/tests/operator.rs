//! The operator's commands, as an operator types them: the real binary against real processes over a real Redis.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use merit_integration::{
    Authority, Folder, Merit, Persistence, Redis, Settings, Upstream, binary,
    client::Client,
    eventually, keys, ports,
    ratings::{Poster, Rating},
    unix_time,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

const DEADLINE: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-of-operators";
/// Every bucket's settings here are those of `Settings`.
const MAIN: &str = "moltbook-agent-bucket";

/// What a command printed and how it ended.
#[derive(Debug)]
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// Returns what was printed, when all went well.
    fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Returns the one object that was printed on one line.
    fn json(self) -> Value {
        let out = self.good();
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).unwrap()
    }
}

/// A shell of an operator: where the listener is, and the token.
struct Shell {
    admin: String,
    token: Option<&'static str>,
}

impl Shell {
    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.env_remove("MERIT_ADMIN_TOKEN").env_remove("NO_COLOR").stdin(Stdio::null());
        command.env("MERIT_ADMIN_URL", &self.admin);
        if let Some(token) = self.token {
            command.env("MERIT_ADMIN_TOKEN", token);
        }
        command
    }

    async fn run(&self, words: &[&str]) -> Done {
        Done::of(self.command().args(words).output().await.unwrap())
    }

    /// Runs what a line says, words parted by spaces.
    async fn line(&self, line: &str) -> Done {
        self.run(&line.split(' ').collect::<Vec<_>>()).await
    }
}

struct Stand {
    merit: Merit,
    shell: Shell,
    redis: Redis,
    _upstream: Upstream,
}

impl Stand {
    async fn start() -> Self {
        Self::with("local").await
    }

    /// Starts everything, with `on_outage` as said.
    async fn with(on_outage: &'static str) -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let upstream = Upstream::start();
        let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
        settings.on_outage = on_outage;
        let port = ports::free();
        settings.tables =
            format!("[admin]\nlisten = \"127.0.0.1:{port}\"\ntoken_env = \"MERIT_ADMIN_TOKEN\"\n");
        settings.environment.push(("MERIT_ADMIN_TOKEN".to_owned(), TOKEN.to_owned()));
        let merit = Merit::start(settings).await;
        let shell = Shell { admin: format!("http://127.0.0.1:{port}"), token: Some(TOKEN) };
        Self { merit, shell, redis, _upstream: upstream }
    }

    async fn status(&self, agent: &str) -> u16 {
        let url = format!("{}/v1/anything", self.merit.gateway());
        Client::new().get(&url, Some(&keys::agent(agent))).await.unwrap().status.as_u16()
    }
}

#[tokio::test]
async fn agents_are_listed_shown_explained_and_moved_by_hand() {
    let stand = Stand::start().await;
    let shell = &stand.shell;
    let mut poster = Poster::new(&stand.merit.ingest());
    for agent in ["alice", "bob"] {
        poster.try_rate(&Rating::new(agent, 5.0)).await.unwrap();
    }
    eventually("both agents are in the list", DEADLINE, || async {
        let done = shell.line("agents list --json").await;
        done.code == 0 && done.json()["matching"] == 2
    })
    .await;
    let done = shell.line("agents list --query LIC --sort agent_id").await;
    assert!(done.err.starts_with("1 of 2 agents"), "{done:?}");
    let table = done.good();
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("AGENT") && lines[1].starts_with("alice") && lines.len() == 2,
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours into a pipe: {table:?}");
    let coloured = shell.line("agents list --color always").await.good();
    assert!(coloured.contains("\u{1b}[1mAGENT\u{1b}[0m"), "{coloured:?}");

    let shown = shell.line("agents set alice --rate 3 --capacity 6 --json").await.json();
    assert_eq!((&shown["refill_rate"], &shown["capacity"]), (&json!(3.0), &json!(6)));
    assert!(shell.line("agents show alice").await.good().contains("limits    3/s, capacity 6"));
    let listed = shell.line("agents list --only operator --json").await;
    assert_eq!(listed.code, 0, "{listed:?}");
    let frozen = shell.line("agents freeze alice").await.good();
    assert!(frozen.contains("held      frozen"), "{frozen}");
    let explained = shell.line("explain alice").await.good();
    for part in ["alice has 3/s, capacity 6", "Why\n  ", "Held: frozen", "Buckets\n  ", MAIN] {
        assert!(explained.contains(part), "{part} is not in {explained}");
    }
    assert!(!shell.line("agents unfreeze alice").await.good().contains("frozen"));

    assert_eq!(stand.status("bob").await, 200);
    let banned = shell.line("agents ban bob --for 1h").await.good();
    assert!(banned.contains("held      banned, "), "{banned}");
    eventually("bob is banned", DEADLINE, || async { stand.status("bob").await == 403 }).await;
    shell.line("agents unban bob").await.good();
    eventually("bob is not", DEADLINE, || async { stand.status("bob").await == 200 }).await;
    // A year has 31,556,952 s in the middle; the day is one to three years away.
    let day = format!("{}-01-01T00:00:00Z", 1972 + unix_time().as_secs() / 31_556_952);
    let banned = shell.run(&["agents", "ban", "bob", "--until", &day]).await.good();
    assert!(banned.contains("banned, "), "{banned}");
    assert!(shell.line("explain bob").await.good().contains(&format!("answered 403 until {day}")));
    shell.line("agents unban bob").await.good();

    let reset = shell.line("agents reset alice --json").await.json();
    assert_eq!((&reset["refill_rate"], &reset["capacity"]), (&json!(20.0), &json!(40)));
    let unknown = shell.line("agents show nobody-yet").await.good();
    assert!(unknown.contains("not known yet"), "{unknown}");
}

#[tokio::test]
async fn what_goes_wrong_is_told_with_its_remedy_and_the_right_code() {
    let stand = Stand::start().await;
    let shell = &stand.shell;
    for (line, code, told) in [
        ("agents set alice", 2, "--rate"),
        ("agents set bad/id --rate 1", 2, "may hold letters"),
        ("agents set alice --rate 1 --bucket none", 2, "bucket_name"),
        ("agents set alice --capacity 9000000000", 2, "capacity"),
        ("policy --token-env NO_SUCH_VARIABLE", 2, "NO_SUCH_VARIABLE"),
        ("policy --admin http://192.0.2.1:9900", 2, "unencrypted"),
        ("policy --admin http://ann:secret@127.0.0.1", 2, "--token-env"),
        ("policy --admin http://127.0.0.1:1", 1, "nobody listens there"),
        ("top", 2, "--once"),
        ("buckets apply /no/such/file", 2, "/no/such/file"),
    ] {
        let done = shell.line(line).await;
        assert_eq!(done.code, code, "{line}: {done:?}");
        assert!(done.err.contains(told) && done.out.is_empty(), "{line}: {done:?}");
        assert!(!done.err.contains("secret") && !done.err.contains(TOKEN), "{done:?}");
    }
    // Reading needs no token here, writing does.
    let stranger = Shell { admin: shell.admin.clone(), token: None };
    stranger.line("policy").await.good();
    let done = stranger.line("agents freeze alice").await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("MERIT_ADMIN_TOKEN") && done.err.contains("401"), "{done:?}");
    let liar = Shell { admin: shell.admin.clone(), token: Some("another-token-of-someone") };
    let done = liar.line("agents freeze alice").await;
    assert!(done.code == 1 && done.err.contains("another one"), "{done:?}");
    // The metrics listener is another one.
    let metrics = Shell { admin: stand.merit.metrics(), token: None };
    let done = metrics.line("policy").await;
    assert_eq!(done.code, 1, "{done:?}");
}

#[tokio::test]
async fn the_policy_is_told() {
    let stand = Stand::start().await;
    let policy = stand.shell.line("policy --json").await.json();
    assert_eq!(policy["kind"], "additive");
    let text = stand.shell.line("policy").await.good();
    assert!(text.starts_with("policy   additive\n") && text.contains("[policy]"), "{text}");
    assert!(text.lines().any(|line| line.split_whitespace().eq(["r_max", "40.0"])), "{text}");
}

#[tokio::test]
async fn health_needs_neither_shell_nor_token() {
    // With the other policies a gateway is ready without its store.
    let mut stand = Stand::with("closed").await;
    assert_eq!(stand.shell.line("health --json").await.json()["ready"], true);
    let config = stand.merit.folder().join("merit.toml");
    let nobody = Shell { admin: "http://127.0.0.1:1".to_owned(), token: None };
    let by_file = ["health", "--config", config.to_str().unwrap()];
    assert!(nobody.run(&by_file).await.good().contains("merit"));
    let url = format!("{}/readyz", stand.merit.metrics());
    nobody.run(&["health", "--url", &url]).await.good();
    // The one variable that says otherwise counts here too.
    let mut command = nobody.command();
    command.args(by_file).env("MERIT__METRICS__LISTEN", "127.0.0.1:1");
    let done = Done::of(command.output().await.unwrap());
    assert_eq!(done.code, 1, "{done:?}");
    let off = Folder::new("off");
    off.write("off.toml", "[admin]\n");
    let path = off.path().join("off.toml");
    let done = nobody.run(&["health", "--config", path.to_str().unwrap()]).await;
    assert!(done.code == 2 && done.err.contains("metrics.listen"), "{done:?}");

    stand.redis.freeze();
    eventually("the process is not ready", DEADLINE, || async {
        let done = nobody.run(&by_file).await;
        done.code == 1 && done.err.contains("is not ready: ") && done.err.contains("store")
    })
    .await;
    stand.redis.thaw();
}

#[tokio::test]
async fn top_prints_one_picture_or_its_answers() {
    let stand = Stand::start().await;
    let mut poster = Poster::new(&stand.merit.ingest());
    poster.try_rate(&Rating::new("alice", 5.0)).await.unwrap();
    eventually("the agent is in the picture", DEADLINE, || async {
        let picture = stand.shell.line("top --once --interval 200ms").await.good();
        assert!(picture.starts_with("merit  http://127.0.0.1:"), "{picture}");
        assert!(picture.contains("policy additive") && !picture.contains('\u{1b}'), "{picture}");
        picture.contains("alice")
    })
    .await;
    let answers = stand.shell.line("top --once --interval 200ms --json").await.json();
    assert_eq!(
        (&answers["overview"]["role"], &answers["agents"]["page"]),
        (&json!("all"), &json!(1))
    );
}

/// `merit top` on a terminal of its own (util-linux's `script`), which tells afterwards how it was left.
struct Terminal {
    child: Child,
    folder: Folder,
    seen: Arc<tokio::sync::Mutex<String>>,
}

impl Terminal {
    fn start(shell: &Shell) -> Self {
        let folder = Folder::new("terminal");
        let pid = folder.path().join("pid");
        let program = binary();
        let script = format!(
            "stty rows 40 cols 120; sh -c 'echo $$ > {}; exec {} top --interval 200ms'; echo code=$?; stty -a",
            pid.display(),
            program.display(),
        );
        let mut child = Command::new("script")
            .args(["-qfec", &script, "/dev/null"])
            .env("MERIT_ADMIN_URL", &shell.admin)
            .env("MERIT_ADMIN_TOKEN", TOKEN)
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("script is there (apt-get install bsdutils)");
        let mut out = child.stdout.take().unwrap();
        let seen = Arc::new(tokio::sync::Mutex::new(String::new()));
        let told = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = out.read(&mut piece).await {
                bytes.extend_from_slice(&piece[..length]);
                *told.lock().await = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        Self { child, folder, seen }
    }

    async fn press(&mut self, keys: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(keys.as_bytes()).await.unwrap();
        input.flush().await.unwrap();
    }

    /// Waits for a word: what stands between words may be there already, and is not written again.
    async fn shows(&self, text: &str) {
        eventually(&format!("the terminal shows {text:?}"), DEADLINE, || async {
            self.seen.lock().await.contains(text)
        })
        .await;
    }

    /// Sends a signal to `merit top` itself.
    async fn signal(&self, name: &str) {
        let pid: PathBuf = self.folder.path().join("pid");
        let pid = fs::read_to_string(pid).unwrap();
        let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.trim()).status().await;
        assert!(sent.unwrap().success());
    }

    /// Waits for the end; the terminal must be as it was.
    async fn ended(mut self) {
        self.shows("speed ").await;
        drop(self.child.stdin.take());
        tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        let seen = self.seen.lock().await;
        let (_, after) = seen.rsplit_once("\u{1b}[?1049l").expect("the screen was given back");
        assert!(seen.contains("\u{1b}[?1049h") && seen.contains("\u{1b}[?25h"), "{seen:?}");
        assert!(after.contains("code=0"), "{after}");
        let words: Vec<&str> = after.split([' ', ';', '\r', '\n']).collect();
        for flag in ["icanon", "echo", "isig", "opost"] {
            assert!(words.contains(&flag), "{flag} is off: {after}");
        }
    }
}

#[tokio::test]
async fn top_watches_survives_a_lost_connection_and_gives_the_terminal_back() {
    let mut stand = Stand::start().await;
    let mut poster = Poster::new(&stand.merit.ingest());
    poster.try_rate(&Rating::new("alice", 5.0)).await.unwrap();
    let mut terminal = Terminal::start(&stand.shell);
    terminal.shows("alice").await;
    terminal.press("\r").await;
    terminal.shows("Why").await;
    terminal.press("\u{1b}").await;
    stand.merit.kill9();
    terminal.shows("DISCONNECTED").await;
    let before = terminal.seen.lock().await.len();
    stand.merit.restart().await;
    eventually("the picture is alive again", DEADLINE, || async {
        terminal.seen.lock().await.get(before..).is_some_and(|news| news.contains("ready"))
    })
    .await;
    terminal.press("q").await;
    terminal.ended().await;
}

#[tokio::test]
async fn signals_end_top_and_give_the_terminal_back() {
    let stand = Stand::start().await;
    for signal in ["TERM", "INT"] {
        let terminal = Terminal::start(&stand.shell);
        terminal.shows("additive").await;
        terminal.signal(signal).await;
        terminal.ended().await;
    }
}

#[tokio::test]
async fn a_listener_behind_tls_is_asked_when_its_authority_is_trusted() {
    let stand = Stand::start().await;
    let authority = Authority::new();
    let port = tls_in_front_of(&authority, &stand.shell.admin).await;
    let shell = Shell { admin: format!("https://127.0.0.1:{port}"), token: Some(TOKEN) };
    let done = shell.line("policy").await;
    assert!(done.code == 1 && done.err.contains("--ca-file"), "{done:?}");
    let file = authority.file("ca.pem");
    shell.run(&["agents", "freeze", "alice", "--ca-file", &file]).await.good();
    let done = shell.run(&["policy", "--ca-file", &authority.file("ca.key")]).await;
    assert!(done.code == 2 && done.err.contains("no certificate"), "{done:?}");
}

/// Ends TLS with the server's certificate of `authority` and passes bytes on; returns its port.
async fn tls_in_front_of(authority: &Authority, admin: &str) -> u16 {
    use tokio_rustls::rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    };
    let certificate = CertificateDer::from_pem_slice(&authority.pem("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&authority.pem("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let behind = admin.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((plain, _)) = socket.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let Ok(mut outer) = acceptor.accept(plain).await else { return };
                let mut inner = tokio::net::TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn completions_and_manual_pages_come_from_the_binary() {
    let shell = Shell { admin: "http://127.0.0.1:1".to_owned(), token: None };
    let script = shell.line("completions bash").await.good();
    let folder = Folder::new("man");
    folder.write("merit.bash", &script);
    let checked = Command::new("bash")
        .args(["-n", "merit.bash"])
        .current_dir(folder.path())
        .status()
        .await
        .unwrap();
    assert!(checked.success(), "bash does not read it");
    assert!(shell.line("man").await.good().contains(".TH merit"));
    let pages = folder.path().join("man1");
    shell.run(&["man", pages.to_str().unwrap()]).await.good();
    assert!(fs::read_to_string(pages.join("merit-buckets-bind.1")).unwrap().contains("first"));
    assert_eq!(shell.line("completions tcsh").await.code, 2);
    assert_eq!(shell.run(&["man", "/dev/null/x"]).await.code, 1);
}

#[tokio::test]
async fn buckets_are_changed_on_a_running_process_and_go_back_to_the_file() {
    let stand = Stand::start().await;
    let shell = &stand.shell;
    let list = shell.line("buckets list").await.good();
    assert!(
        list.contains(MAIN) && list.contains("revision 0, from the configuration file"),
        "{list}"
    );
    let done = shell.line("buckets add writes --rate 0.001 --capacity 1 --dry-run").await;
    assert!(done.out.starts_with("+ bucket writes") && done.err.contains("dry run"), "{done:?}");
    shell.line("buckets add writes --rate 0.001 --capacity 1").await.good();
    let bound = shell.line("buckets bind /v1/orders/* --methods GET --bucket writes").await;
    assert!(bound.err.contains("within two seconds"), "{bound:?}");
    assert!(bound.good().starts_with("+ route GET /v1/orders/*"));
    // One token there, and nobody's other path is charged for it.
    let url = format!("{}/v1/orders/1", stand.merit.gateway());
    let token = keys::agent("alice");
    let client = Client::new();
    eventually("the route is charged", DEADLINE, || async {
        client.get(&url, Some(&token)).await.unwrap().status == 429
    })
    .await;
    assert_eq!(stand.status("alice").await, 200);

    let folder = Folder::new("buckets");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    folder.write("all.json", &shell.line("buckets export").await.good());
    let same = shell.run(&["buckets", "apply", &path("all.json")]).await;
    assert!(same.err.contains("nothing to change"), "{same:?}");
    shell.line("buckets set writes --rate 5 --capacity 50").await.good();
    let stale = shell.run(&["buckets", "apply", &path("all.json")]).await;
    assert!(stale.code == 1 && stale.err.contains("changed the buckets since"), "{stale:?}");
    folder.write("one.json", &shell.line("buckets export writes").await.good().replace("50", "70"));
    let one = shell.run(&["buckets", "apply", &path("one.json")]).await.good();
    assert_eq!(one.trim(), "~ bucket writes: capacity 50 -> 70");
    folder.write("bad.json", r#"{"buckets":[{"bucket_name":"x","refill_rate":-1,"capacity":0,"default":true}],"routes":[{"path":"x","buckets":["none"]}]}"#);
    let bad = shell.run(&["buckets", "apply", &path("bad.json")]).await;
    assert_eq!(bad.code, 2, "{bad:?}");
    for fault in ["bucket[0].refill_rate", "route[0].path"] {
        assert!(bad.err.contains(fault), "{bad:?}");
    }
    let kept = shell.line("buckets remove writes").await;
    assert!(kept.code == 1 && kept.err.contains("unbind"), "{kept:?}");
    shell.line("buckets unbind /v1/orders/*").await.good();
    shell.line("buckets remove writes").await.good();
    shell.line("buckets clear").await.good();
    assert_eq!(shell.line("buckets list --json").await.json()["source"], "file");
}
