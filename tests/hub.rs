//! The built program against a server on this machine that speaks the Hub's language: metadata in
//! headers, redirects to another host, ranges, errors.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use assert_cmd::cargo::CommandCargoExt;
use llmcls::atomic_file::hex;
use safetensors::SafeTensors;
use sha1::{Digest, Sha1};
use sha2::Sha256;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The commit of `main` on a Hub that has moved on.
const LATER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const TOKEN: &str = "hf_s3cretT0ken";

/// Behaviour of the server in addition to serving.
#[derive(Clone, Default)]
struct Manners {
    /// Answers without this token are refused as gated.
    needs_token: bool,
    /// The store closes the connection after this many bytes, this many times.
    cuts: Arc<Mutex<Vec<usize>>>,
    /// The store's bytes are not those that the Hub announced.
    is_corrupt: bool,
    /// The Hub fails this many times before it answers.
    failures: Arc<Mutex<usize>>,
    /// The store sends this many bytes and then nothing, with the connection open, this many times.
    stalls: Arc<Mutex<Vec<usize>>>,
    /// Connections that are kept open.
    held: Arc<Mutex<Vec<TcpStream>>>,
    /// The store sends this many bytes more than the Hub announced.
    extra: usize,
    /// The Hub redirects to itself first, with headers that describe the redirect and not the file.
    redirects: bool,
    /// `main` stands for a later commit.
    has_moved_on: bool,
    /// Names in the list of files, beside those that are there.
    listed: Vec<String>,
}

#[derive(Debug)]
struct Request {
    /// `hub`, or `store`, where large files lie.
    server: &'static str,
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Hub {
    /// Serves `files` as `org/tiny`.
    fn serve(files: BTreeMap<String, Vec<u8>>, manners: Manners) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, store) = (listen(), listen());
        let store_address = format!("http://{}", store.local_addr().unwrap());
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let files = Arc::new(files);
        for (server, listener) in [("hub", hub), ("store", store)] {
            let (requests, files) = (Arc::clone(&requests), Arc::clone(&files));
            let (manners, store) = (manners.clone(), store_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let Some(request) = read_request(server, &stream) else { continue };
                    match server {
                        "hub" => answer_as_hub(&mut stream, &request, &files, &manners, &store),
                        _ => answer_as_store(&mut stream, &request, &files, &manners),
                    }
                    requests.lock().unwrap().push(request);
                }
            });
        }
        Self { endpoint, requests }
    }

    /// Requested ranges of a file in the store, one entry a request.
    fn ranges(&self, file: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let of_file = requests.iter().filter(|request| request.server == "store" && request.path.ends_with(file));
        of_file.map(|request| request.headers.get("range").cloned().unwrap_or_default()).collect()
    }
}

fn read_request(server: &'static str, stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Some(Request { server, method, path, headers })
}

fn send(stream: &mut TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // The program may have gone away: that is its business.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

fn answer_as_hub(
    stream: &mut TcpStream,
    request: &Request,
    files: &BTreeMap<String, Vec<u8>>,
    manners: &Manners,
    store: &str,
) {
    let empty = [("content-length", "0".to_owned())];
    let refuse = |stream: &mut TcpStream, status: &str, code: &str| {
        send(stream, status, &[("x-error-code", code.to_owned()), empty[0].clone()], b"");
    };
    let mut failures = manners.failures.lock().unwrap();
    if *failures > 0 {
        *failures -= 1;
        return send(stream, "503 Service Unavailable", &empty, b"");
    }
    if request.path.starts_with("/api/datasets/org/tiny/revision/") {
        let names = files.keys().chain(&manners.listed);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::to_vec(&serde_json::json!({"sha": COMMIT, "siblings": siblings})).unwrap();
        return send(stream, "200 OK", &[("content-length", body.len().to_string())], &body);
    }
    let path = request.path.strip_prefix("/datasets").unwrap_or(&request.path);
    if manners.redirects && !path.starts_with("/cache") {
        let headers = [
            ("location", format!("/cache{path}")),
            ("etag", "\"0000000000000000000000000000000000000000\"".to_owned()),
            ("x-repo-commit", COMMIT.to_owned()),
            ("content-length", "278".to_owned()),
        ];
        let body = if request.method == "HEAD" { Vec::new() } else { vec![b'r'; 278] };
        return send(stream, "307 Temporary Redirect", &headers, &body);
    }
    let path = path.strip_prefix("/cache").unwrap_or(path);
    let Some(rest) = path.strip_prefix("/org/tiny/resolve/") else {
        // The Hub answers so for what does not exist, to whom it does not know.
        return refuse(stream, "401 Unauthorized", "RepoNotFound");
    };
    let (revision, file) = rest.split_once('/').unwrap();
    if ![COMMIT, LATER_COMMIT, "main", "v1"].contains(&revision) {
        return refuse(stream, "404 Not Found", "RevisionNotFound");
    }
    if manners.needs_token && request.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return refuse(stream, "401 Unauthorized", "GatedRepo");
    }
    let commit = match revision {
        LATER_COMMIT => LATER_COMMIT,
        "main" if manners.has_moved_on => LATER_COMMIT,
        _ => COMMIT,
    };
    let commit = ("x-repo-commit", commit.to_owned());
    let Some(bytes) = files.get(file) else {
        let code = ("x-error-code", "EntryNotFound".to_owned());
        return send(stream, "404 Not Found", &[code, commit, empty[0].clone()], b"");
    };
    if file.ends_with(".safetensors") {
        let headers = [
            commit,
            ("location", format!("{store}/blobs/{file}")),
            ("x-linked-size", bytes.len().to_string()),
            ("x-linked-etag", format!("\"{}\"", hex(&Sha256::digest(bytes)))),
            empty[0].clone(),
        ];
        return send(stream, "302 Found", &headers, b"");
    }
    let hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    let headers = [commit, ("etag", format!("\"{}\"", hex(&hash))), ("content-length", bytes.len().to_string())];
    send(stream, "200 OK", &headers, if request.method == "HEAD" { b"" } else { bytes });
}

fn answer_as_store(stream: &mut TcpStream, request: &Request, files: &BTreeMap<String, Vec<u8>>, manners: &Manners) {
    let mut bytes = files[request.path.strip_prefix("/blobs/").unwrap()].clone();
    if manners.is_corrupt {
        bytes[0] ^= 1;
    }
    bytes.extend(vec![b'x'; manners.extra]);
    let from: usize = request.headers["range"].strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
    let (total, part) = (bytes.len(), &bytes[from..]);
    let headers =
        [("content-range", format!("bytes {from}-{}/{total}", total - 1)), ("content-length", part.len().to_string())];
    if let Some(stall) = manners.stalls.lock().unwrap().pop() {
        send(stream, "206 Partial Content", &headers, &part[..stall]);
        return manners.held.lock().unwrap().push(stream.try_clone().unwrap());
    }
    let sent = manners.cuts.lock().unwrap().pop().map_or(part.len(), |cut| cut.min(part.len()));
    send(stream, "206 Partial Content", &headers, &part[..sent]);
}

/// A small Llama in two shards, with a tokenizer that nobody looks into here.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixture = root.join("tests/fixtures/llama_tied");
    let whole = fs::read(fixture.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap();
    let mut shards = [Vec::new(), Vec::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        map.insert(name.to_owned(), format!("model-0000{}-of-00002.safetensors", index % 2 + 1).into());
        shards[index % 2].push((name.to_owned(), tensor));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    let mut files = BTreeMap::from([
        ("config.json".to_owned(), fs::read(fixture.join("config.json")).unwrap()),
        ("tokenizer.json".to_owned(), fs::read(root.join("data/tiny-llama/tokenizer.json")).unwrap()),
        ("model.safetensors.index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
    ]);
    for (number, shard) in (1..).zip(shards) {
        let bytes = safetensors::serialize(shard, None).unwrap();
        files.insert(format!("model-0000{number}-of-00002.safetensors"), bytes);
    }
    files
}

/// A step on `model`, with everything of the Hub's in `home`.
fn step(model: &str, home: &Path, environment: &[(&str, &str)]) -> Output {
    step_command(model, home, environment).output().unwrap()
}

fn step_command(model: &str, home: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["bench", "--config", "configs/tiny.yaml", "--steps", "1"]);
    command.args(["--warmup", "0", "--length", "5", "--batch_size", "2", "--set", "model.random_init=false", "--set"]);
    command.arg(format!("model.model_name={model}"));
    for key in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "ALL_PROXY"]
    {
        command.env_remove(key);
    }
    command.env("HF_HOME", home).envs(environment.iter().copied());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect_success(output: &Output) {
    assert!(output.status.success(), "{}", errors(output));
}

fn expect_error(output: &Output, parts: &[&str]) {
    let text = errors(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(!text.contains(TOKEN), "the token is in: {text}");
}

#[test]
fn a_sharded_model_is_downloaded_once_checked_and_used_offline() {
    let hub = Hub::serve(repository(), Manners::default());
    let home = tempfile::tempdir().unwrap();
    let address: &[(&str, &str)] = &[("HF_ENDPOINT", &hub.endpoint)];
    expect_success(&step("org/tiny", home.path(), address));
    let first = hub.requests.lock().unwrap().len();
    // The layout of Python's huggingface_hub.
    let cache = home.path().join("hub/models--org--tiny");
    assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    let shard = cache.join("snapshots").join(COMMIT).join("model-00001-of-00002.safetensors");
    let blob = fs::canonicalize(&shard).unwrap();
    assert_eq!(blob.file_name().unwrap().to_str().unwrap(), hex(&Sha256::digest(fs::read(&shard).unwrap())));
    if cfg!(unix) {
        assert!(fs::read_link(&shard).unwrap().starts_with("../../blobs"));
    }
    assert!(cache.join(".no_exist").join(COMMIT).join("special_tokens_map.json").exists());

    expect_success(&step("org/tiny", home.path(), address));
    assert_eq!(hub.requests.lock().unwrap().len(), first, "the cache was not used");
    // No address of a Hub is needed, nor a network: 127.0.0.1:9 answers nothing.
    let nowhere: &[(&str, &str)] = &[("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", "1")];
    expect_success(&step("org/tiny", home.path(), nowhere));
    let output = step("org/other", home.path(), nowhere);
    expect_error(
        &output,
        &["`config.json` of `org/other` is not in the cache", "models--org--other", "HF_HUB_OFFLINE is set"],
    );

    // A revision has a place of its own; blobs are shared.
    let before = hub.ranges(".safetensors").len();
    expect_success(&step("org/tiny@v1", home.path(), address));
    assert_eq!(fs::read_to_string(cache.join("refs/v1")).unwrap(), COMMIT);
    assert_eq!(hub.ranges(".safetensors").len(), before, "blobs were downloaded again");
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_stopped() {
    // The last element is the first cut; then come ten that end the program.
    let cuts = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1_000];
    let manners = Manners { cuts: Arc::new(Mutex::new(cuts)), ..Manners::default() };
    let hub = Hub::serve(repository(), manners.clone());
    let home = tempfile::tempdir().unwrap();
    let address: &[(&str, &str)] = &[("HF_ENDPOINT", &hub.endpoint)];
    let output = step("org/tiny", home.path(), address);
    expect_error(&output, &["model-00001-of-00002.safetensors", "the connection ended after 1000 of"]);
    let snapshot = home.path().join("hub/models--org--tiny/snapshots").join(COMMIT);
    assert!(!snapshot.join("model-00001-of-00002.safetensors").exists(), "a half file has the name of a whole one");
    let note = home.path().join("hub/models--org--tiny/refs/main");
    assert!(!note.exists(), "main stands for a snapshot without weights");
    assert_eq!(&hub.ranges("1-of-00002.safetensors")[..2], ["bytes=0-", "bytes=1000-"]);
    manners.cuts.lock().unwrap().clear();
    // And within one run.
    *manners.cuts.lock().unwrap() = vec![500];
    let before = hub.ranges("1-of-00002.safetensors").len();
    expect_success(&step("org/tiny", home.path(), address));
    assert_eq!(&hub.ranges("1-of-00002.safetensors")[before..], ["bytes=1000-", "bytes=1500-"]);
    assert_eq!(fs::read_to_string(note).unwrap(), COMMIT);
}

#[test]
fn a_download_that_stalls_goes_on_and_is_given_up_in_the_end() {
    let manners = Manners { stalls: Arc::new(Mutex::new(vec![700, 300])), ..Manners::default() };
    let hub = Hub::serve(repository(), manners.clone());
    let home = tempfile::tempdir().unwrap();
    let environment: &[(&str, &str)] = &[("HF_ENDPOINT", &hub.endpoint), ("HF_HUB_DOWNLOAD_TIMEOUT", "1")];
    expect_success(&step("org/tiny", home.path(), environment));
    assert_eq!(hub.ranges("1-of-00002.safetensors"), ["bytes=0-", "bytes=300-", "bytes=1000-"]);

    *manners.stalls.lock().unwrap() = vec![0; 20];
    let home = tempfile::tempdir().unwrap();
    let output = step("org/tiny", home.path(), environment);
    expect_error(&output, &["1-of-00002.safetensors", "5 attempts failed", "nothing arrived for 1 s after 0 of"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_download_that_stalls() {
    use std::time::{Duration, Instant};
    let manners = Manners { stalls: Arc::new(Mutex::new(vec![10; 9])), ..Manners::default() };
    let hub = Hub::serve(repository(), manners);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["train", "--config", "configs/tiny.yaml", "--set"]);
    command.args(["model.random_init=false", "--set", "model.model_name=org/tiny", "--override_output_root"]);
    command.arg(home.path()).env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint);
    let mut child = command.env("HF_HOME", home.path()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while hub.ranges("1-of-00002.safetensors").is_empty() {
        assert!(Instant::now() < deadline, "nothing was asked for");
        std::thread::sleep(Duration::from_millis(20));
    }
    let interrupted = Instant::now();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(10), "it took {:?}", interrupted.elapsed());
}

#[test]
fn all_files_are_of_the_commit_that_the_cache_knows() {
    let hub = Hub::serve(repository(), Manners::default());
    let home = tempfile::tempdir().unwrap();
    expect_success(&step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]));
    let cache = home.path().join("hub/models--org--tiny");
    let snapshots = cache.join("snapshots");
    // As where only a tokenizer was ever loaded.
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        fs::remove_file(snapshots.join(COMMIT).join(shard)).unwrap();
    }
    let later = Hub::serve(repository(), Manners { has_moved_on: true, ..Manners::default() });
    expect_success(&step("org/tiny", home.path(), &[("HF_ENDPOINT", &later.endpoint)]));
    let asked: Vec<String> = later.requests.lock().unwrap().iter().map(|request| request.path.clone()).collect();
    assert!(!asked.is_empty() && asked.iter().all(|path| !path.contains("/main/")), "{asked:?}");
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
}

#[test]
fn a_redirect_does_not_describe_the_file_that_it_leads_to() {
    let hub = Hub::serve(repository(), Manners { redirects: true, ..Manners::default() });
    let home = tempfile::tempdir().unwrap();
    expect_success(&step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]));
    let config = home.path().join("hub/models--org--tiny/snapshots").join(COMMIT).join("config.json");
    assert_eq!(fs::read(config).unwrap(), repository()["config.json"]);
}

#[test]
fn a_body_that_is_longer_than_announced_is_cut() {
    let hub = Hub::serve(repository(), Manners { extra: 1000, ..Manners::default() });
    let home = tempfile::tempdir().unwrap();
    expect_success(&step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]));
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let outside = "../../../../../outside/train.jsonl";
    let run = |hub: &Hub, home: &Path| {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.args(["prepare", "amazoncat", "--dataset", "org/tiny", "--top_k", "2", "--out_dir"]);
        command.arg(home.join("out")).env("HF_HOME", home).env("HF_ENDPOINT", &hub.endpoint).output().unwrap()
    };
    for name in [outside, "/tmp/train.jsonl", "a/../../train.jsonl", "..\\train.jsonl", "C:\\train.jsonl"] {
        let home = tempfile::tempdir().unwrap();
        let hub = Hub::serve(BTreeMap::new(), Manners { listed: vec![name.to_owned()], ..Manners::default() });
        expect_error(&run(&hub, home.path()), &["not a plain path inside the repository"]);
        let asked = hub.requests.lock().unwrap().iter().filter(|request| request.path.contains("resolve")).count();
        assert_eq!(asked, 0, "{name}");
    }
    // And the shards that an index names.
    let mut files = repository();
    let index = serde_json::json!({"weight_map": {"a": outside}});
    files.insert("model.safetensors.index.json".to_owned(), serde_json::to_vec(&index).unwrap());
    let home = tempfile::tempdir().unwrap();
    let output = step("org/tiny", home.path(), &[("HF_ENDPOINT", &Hub::serve(files, Manners::default()).endpoint)]);
    expect_error(&output, &["index.json", "not a plain path inside the repository"]);
}

#[test]
fn random_weights_do_not_take_the_place_of_those_on_the_hub() {
    let hub = Hub::serve(repository(), Manners::default());
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["check", "--config", "configs/tiny.yaml", "--set"]);
    command.args(["model.model_name=org/tiny"]).env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint);
    let output = command.env("HF_HOME", home.path()).output().unwrap();
    expect_error(&output, &["model.random_init", "model.safetensors.index.json"]);
    assert!(hub.ranges("").is_empty(), "weights were downloaded to be thrown away");
}

#[test]
fn bytes_that_are_not_those_announced_are_thrown_away() {
    let hub = Hub::serve(repository(), Manners { is_corrupt: true, ..Manners::default() });
    let home = tempfile::tempdir().unwrap();
    let output = step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    expect_error(&output, &["checksum", "deleted"]);
    let blobs = fs::read_dir(home.path().join("hub/models--org--tiny/blobs")).unwrap();
    let names: Vec<String> = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.len() == 40), "{names:?}");
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let manners = Manners { needs_token: true, ..Manners::default() };
    let hub = Hub::serve(repository(), manners);
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let address = ("HF_ENDPOINT", hub.endpoint.as_str());
    expect_error(&step("org/tiny", home.path(), &[address]), &["is gated", "accept its licence", "model.hf_token"]);
    // The token file of the `hf` command.
    fs::write(home.path().join("token"), format!("{TOKEN}\n")).unwrap();
    expect_success(&step("org/tiny", home.path(), &[address]));
    expect_success(&step("org/tiny", other.path(), &[address, ("HF_TOKEN", TOKEN)]));
    let requests = hub.requests.lock().unwrap();
    let has_token = |server: &str| {
        requests
            .iter()
            .filter(|request| request.server == server)
            .filter(|r| r.headers.contains_key("authorization"))
            .count()
    };
    assert!(has_token("hub") > 5 && has_token("store") == 0, "{requests:?}");
}

#[test]
fn every_refusal_says_what_it_is() {
    let address = |hub: &Hub| [("HF_ENDPOINT", hub.endpoint.clone())];
    let run = |name: &str, hub: &Hub| {
        let home = tempfile::tempdir().unwrap();
        let environment = address(hub);
        step(name, home.path(), &[(environment[0].0, &environment[0].1)])
    };
    let hub = Hub::serve(repository(), Manners::default());
    expect_error(&run("org/nothing", &hub), &["refuses `org/nothing`", "does not exist, or is private"]);
    expect_error(&run("org/tiny@v9", &hub), &["no revision `v9`"]);
    for name in ["no-such-model", "../x/y", "/no/such", "~/models/x", "a/b/c", "./x"] {
        expect_error(&run(name, &hub), &["there is no directory", name, "not a name on the Hub"]);
    }
    assert!(expect_error_before_asking("data/nope", &hub).contains("data/nope@main"));

    let mut pickled = repository();
    pickled.retain(|name, _| !name.contains("safetensors"));
    pickled.insert("pytorch_model.bin".to_owned(), vec![0; 10]);
    expect_error(&run("org/tiny", &Hub::serve(pickled, Manners::default())), &["pickled weights", "safetensors"]);

    let mut custom = repository();
    let config = String::from_utf8(custom["config.json"].clone()).unwrap();
    let config = config.replacen('{', r#"{"auto_map": {"AutoModel": "x.Y"},"#, 1);
    custom.insert("config.json".to_owned(), config.into_bytes());
    expect_error(&run("org/tiny", &Hub::serve(custom, Manners::default())), &["`auto_map` asks for custom code"]);

    let home = tempfile::tempdir().unwrap();
    let output = step("org/tiny", home.path(), &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    expect_error(&output, &["127.0.0.1:9", "is there a network?", "there is no directory of this name here"]);
}

/// The error for a name that is not asked of the Hub.
fn expect_error_before_asking(name: &str, hub: &Hub) -> String {
    let before = hub.requests.lock().unwrap().len();
    let home = tempfile::tempdir().unwrap();
    let output = step(name, home.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    expect_error(&output, &["there is no directory", name]);
    assert_eq!(hub.requests.lock().unwrap().len(), before);
    errors(&output)
}

#[test]
fn a_hub_that_is_busy_is_asked_again() {
    let manners = Manners { failures: Arc::new(Mutex::new(2)), ..Manners::default() };
    let hub = Hub::serve(repository(), manners);
    let home = tempfile::tempdir().unwrap();
    expect_success(&step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]));
}

#[test]
fn a_data_set_is_downloaded_and_prepared() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/amazoncat");
    let files = fs::read_dir(fixture).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: std::path::PathBuf| {
        (format!("data/{}", path.file_name().unwrap().to_str().unwrap()), fs::read(&path).unwrap())
    };
    let hub = Hub::serve(files.map(named).collect(), Manners::default());
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let run = |environment: &[(&str, &str)]| {
        let mut command = Command::cargo_bin("llmcls").unwrap();
        command.args(["prepare", "amazoncat", "--dataset", "org/tiny", "--top_k", "2", "--out_dir"]).arg(&out);
        command.env("HF_HOME", home.path()).envs(environment.iter().copied()).output().unwrap()
    };
    expect_success(&run(&[("HF_ENDPOINT", &hub.endpoint)]));
    assert!(out.join("test_top2.csv").is_file());
    fs::remove_dir_all(&out).unwrap();
    expect_success(&run(&[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")]));
    assert!(out.join("top2_labels_mapping.json").is_file());
}

/// Where this process may mount a small disk.
#[cfg(target_os = "linux")]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
#[test]
fn a_full_disk_says_how_much_is_needed_and_the_download_goes_on_later() {
    let home = tempfile::tempdir().unwrap();
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(home.path());
        command.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !mount("size=128k") {
        println!("skipped: this process may not mount a tmpfs");
        return;
    }
    let hub = Hub::serve(repository(), Manners::default());
    let full = step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    let grown = mount("remount,size=64m");
    let then = step("org/tiny", home.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    let unmounted = Command::new("umount").arg(home.path()).status().unwrap();
    expect_error(&full, &["the disk is full", "HF_HOME"]);
    assert!(grown && unmounted.success());
    expect_success(&then);
}

#[test]
fn init_reads_configuration_and_tokenizer_and_leaves_the_weights() {
    let hub = Hub::serve(repository(), Manners::default());
    let home = tempfile::tempdir().unwrap();
    let row = |number: usize| format!("the words of the text {number},{}\n", ["a;b", "b", "c"][number % 3]);
    let rows = "text,tags\n".to_owned() + &(0..60).map(row).collect::<String>();
    fs::write(home.path().join("rows.csv"), rows).unwrap();
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(home.path()).args(["init", "rows.csv", "--model_name", "org/tiny"]);
    for key in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "ALL_PROXY"]
    {
        command.env_remove(key);
    }
    let output = command.env("HF_HOME", home.path()).env("HF_ENDPOINT", &hub.endpoint).output().unwrap();
    expect_success(&output);
    let requests = hub.requests.lock().unwrap();
    assert!(requests.iter().any(|request| request.path.ends_with("tokenizer.json")));
    assert!(!requests.iter().any(|request| request.path.contains("safetensors")), "{requests:?}");
    let config = fs::read_to_string(home.path().join("rows/config.yaml")).unwrap();
    assert!(config.contains("model_name: org/tiny") && config.contains("at the peak"), "{config}");
}
