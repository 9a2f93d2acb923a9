//! The built program against a Hub on this machine: repositories, preupload, a store for large files at another address,
//! commits. `huggingface_hub` can drive the same server, which shows that it speaks the protocol.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llmcls::atomic_file::hex;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::export::{errors, llmcls, trained};

const TOKEN: &str = "hf_wr1teT0ken";
/// Larger files are sent in parts of this size.
const PART: usize = 1 << 20;

#[derive(Clone, Default)]
struct State {
    /// Of each repository: whether it is private, its files, its commits.
    repositories: BTreeMap<String, Repository>,
    store: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    /// Each request: the server, method and path, and whether it had the token.
    requests: Vec<(&'static str, String, bool)>,
    /// The store refuses this part of every file.
    broken_part: Option<usize>,
    /// The Hub is busy this many times.
    busy: usize,
    /// Somebody else commits between the description of the repository and the commit.
    is_overtaken: bool,
}

#[derive(Clone, Default)]
struct Repository {
    is_private: bool,
    files: BTreeMap<String, Vec<u8>>,
    /// Git's hash, or the store's, by which a file is told to be the same.
    oids: BTreeMap<String, String>,
    commits: Vec<Value>,
}

impl Repository {
    fn sha(&self) -> String {
        format!("{:040x}", self.commits.len() + 1)
    }
}

struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    has_token: bool,
    body: Vec<u8>,
}

impl Request {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

type Answer = (u16, Vec<(&'static str, String)>, Value);

impl Hub {
    fn start() -> Self {
        let [hub, store] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [endpoint, store_at] = [&hub, &store].map(|server| format!("http://{}", server.local_addr().unwrap()));
        let state = Arc::new(Mutex::new(State::default()));
        for (name, server) in [("hub", hub), ("store", store)] {
            let (state, endpoint, store_at) = (Arc::clone(&state), endpoint.clone(), store_at.clone());
            std::thread::spawn(move || {
                for stream in server.incoming().flatten() {
                    let (state, endpoint, store_at) = (Arc::clone(&state), endpoint.clone(), store_at.clone());
                    std::thread::spawn(move || serve(name, stream, &state, (&endpoint, &store_at)));
                }
            });
        }
        Self { endpoint, state }
    }

    fn push(&self, run: &str, repo: &str, more: &[&str]) -> Output {
        self.command(run, repo, more).env("HF_TOKEN", TOKEN).output().unwrap()
    }

    fn command(&self, run: &str, repo: &str, more: &[&str]) -> Command {
        let mut command = llmcls(&["push", "--run", run, "--repo", repo]);
        command.args(more).env("HF_ENDPOINT", &self.endpoint).env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
        command.env("HF_HOME", "/nonexistent");
        command
    }

    fn repository(&self, name: &str) -> Repository {
        self.state.lock().unwrap().repositories.get(name).cloned().unwrap_or_default()
    }

    fn requests(&self) -> Vec<(&'static str, String, bool)> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let (mut length, mut has_token) = (None, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok(),
            "authorization" => has_token = value.trim() == format!("Bearer {TOKEN}"),
            // S3 takes no chunks.
            "transfer-encoding" => return None,
            _ => {}
        }
    }
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, has_token, body })
}

fn serve(server: &'static str, mut stream: TcpStream, state: &Mutex<State>, addresses: (&str, &str)) {
    let Some(request) = read_request(&stream) else { return };
    let mut state = state.lock().unwrap();
    state.requests.push((server, format!("{} {}", request.method, request.path), request.has_token));
    let (status, headers, body) = match server {
        "hub" => answer_as_hub(&request, &mut state, addresses),
        _ => answer_as_store(&request, &mut state),
    };
    let body = body.to_string();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    );
}

fn answer_as_hub(request: &Request, state: &mut State, (endpoint, store_at): (&str, &str)) -> Answer {
    let fine = |body: Value| (200, Vec::new(), body);
    let refuse = |status: u16, error: &str| (status, Vec::new(), json!({"error": error}));
    if !request.has_token {
        return refuse(401, "Invalid username or password.");
    }
    if state.busy > 0 {
        state.busy -= 1;
        return refuse(503, "busy");
    }
    let body = request.json();
    let path = request.path.split('?').next().unwrap().to_owned();
    if path == "/api/repos/create" {
        let name = format!("{}/{}", body["organization"].as_str().unwrap(), body["name"].as_str().unwrap());
        // Version 2 of Python's client names the visibility, earlier ones and llmcls say whether it is private.
        let is_private = body["private"].as_bool().unwrap_or(false) || body["visibility"] == "private";
        if state.repositories.contains_key(&name) {
            let body = json!({"error": "You already created this model repo", "url": format!("{endpoint}/{name}")});
            return (409, Vec::new(), body);
        }
        state.repositories.insert(name.clone(), Repository { is_private, ..Repository::default() });
        return fine(json!({"url": format!("{endpoint}/{name}"), "name": name, "id": "1"}));
    }
    if path == "/api/validate-yaml" {
        let errors = match body["content"].as_str().unwrap().contains("license: bad") {
            true => json!([{"message": "\"license\" must be one of …"}]),
            false => json!([]),
        };
        return fine(json!({"errors": errors, "warnings": []}));
    }
    if path == "/verify" {
        let found = body["oid"].as_str().and_then(|oid| state.store.get(oid));
        return match found {
            Some(contents) if contents.len() as u64 == body["size"] => fine(json!({})),
            _ => refuse(404, "not there"),
        };
    }
    let parts: Vec<&str> = path.trim_start_matches("/api/models/").trim_start_matches('/').split('/').collect();
    let name = format!("{}/{}", parts[0], parts[1].trim_end_matches(".git"));
    let Some(repository) = state.repositories.get_mut(&name) else { return refuse(404, "Repository not found") };
    match &parts[2..] {
        [] => {
            let siblings: Vec<Value> = repository.files.keys().map(|file| json!({"rfilename": file})).collect();
            let sha = repository.sha();
            if state.is_overtaken {
                repository.commits.push(json!("another"));
            }
            fine(json!({"id": name, "sha": sha, "private": repository.is_private, "siblings": siblings}))
        }
        ["preupload", "main"] => {
            let modes = body["files"].as_array().unwrap().iter().map(|file| {
                let path = file["path"].as_str().unwrap();
                assert!(STANDARD.decode(file["sample"].as_str().unwrap()).unwrap().len() <= 512);
                let mode = if path.ends_with(".safetensors") { "lfs" } else { "regular" };
                json!({"path": path, "uploadMode": mode, "shouldIgnore": false, "oid": repository.oids.get(path)})
            });
            fine(json!({"files": modes.collect::<Vec<_>>()}))
        }
        ["info", "lfs", "objects", "batch"] => {
            assert_eq!((&body["operation"], &body["hash_algo"]), (&json!("upload"), &json!("sha256")));
            let objects = body["objects"].as_array().unwrap().iter().map(|object| {
                let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
                let mut answer = json!({"oid": oid, "size": size});
                if !state.store.contains_key(oid) {
                    let upload = if size > PART {
                        let addresses = (1..=size.div_ceil(PART))
                            .map(|part| (format!("{part:05}"), json!(format!("{store_at}/part/{oid}/{part}?sign=x"))));
                        let mut header: serde_json::Map<String, Value> = addresses.collect();
                        header.insert("chunk_size".to_owned(), json!(PART.to_string()));
                        json!({"href": format!("{store_at}/complete/{oid}"), "header": header})
                    } else {
                        json!({"href": format!("{store_at}/whole/{oid}?sign=x")})
                    };
                    answer["actions"] = json!({"upload": upload, "verify": {"href": format!("{endpoint}/verify")}});
                }
                answer
            });
            fine(json!({"objects": objects.collect::<Vec<_>>()}))
        }
        ["commit", "main"] => commit(request, repository, &state.store, endpoint, &name),
        other => refuse(404, &format!("no such path: {other:?}")),
    }
}

fn commit(
    request: &Request,
    repository: &mut Repository,
    store: &BTreeMap<String, Vec<u8>>,
    endpoint: &str,
    name: &str,
) -> Answer {
    let refuse = |status: u16, error: &str| (status, Vec::new(), json!({"error": error}));
    let text = String::from_utf8(request.body.clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["key"], "header");
    assert!(lines[0]["value"]["summary"].as_str().is_some_and(|summary| !summary.is_empty()));
    let parent = &lines[0]["value"]["parentCommit"];
    if parent.is_string() && *parent != repository.sha() {
        return refuse(412, "A commit has happened since. Please refresh and try again.");
    }
    for line in &lines[1..] {
        let value = &line["value"];
        let path = value["path"].as_str().unwrap().to_owned();
        match line["key"].as_str().unwrap() {
            "file" => {
                assert_eq!(value["encoding"], "base64");
                let contents = STANDARD.decode(value["content"].as_str().unwrap()).unwrap();
                let hash = Sha1::new_with_prefix(format!("blob {}\0", contents.len())).chain_update(&contents);
                repository.oids.insert(path.clone(), hex(&hash.finalize()));
                repository.files.insert(path, contents);
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap();
                let Some(contents) = store.get(oid) else {
                    return refuse(400, "LFS pointer to a file that is not there");
                };
                assert_eq!((value["size"].as_u64(), &value["algo"]), (Some(contents.len() as u64), &json!("sha256")));
                repository.oids.insert(path.clone(), oid.to_owned());
                repository.files.insert(path, contents.clone());
            }
            "deletedFile" => {
                repository.oids.remove(&path);
                assert!(repository.files.remove(&path).is_some(), "{path} was not there");
            }
            other => return refuse(400, &format!("unknown key {other}")),
        }
    }
    repository.commits.push(json!(lines));
    let oid = repository.sha();
    (
        200,
        Vec::new(),
        json!({"success": true, "commitOid": oid, "commitUrl": format!("{endpoint}/{name}/commit/{oid}")}),
    )
}

fn answer_as_store(request: &Request, state: &mut State) -> Answer {
    let refuse = |error: &str| (403, Vec::new(), json!({"error": error}));
    let path = request.path.split('?').next().unwrap().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let put = |state: &mut State, oid: &str, contents: Vec<u8>| {
        let is_whole = hex(&Sha256::digest(&contents)) == oid;
        if is_whole {
            state.store.insert(oid.to_owned(), contents);
        }
        is_whole
    };
    match (request.method.as_str(), &parts[..]) {
        ("PUT", ["whole", oid]) if put(state, oid, request.body.clone()) => (200, Vec::new(), json!({})),
        ("PUT", ["part", oid, number]) => {
            let number: usize = number.parse().unwrap();
            if state.broken_part == Some(number) {
                return refuse("the signature has expired");
            }
            state.parts.entry((*oid).to_owned()).or_default().insert(number, request.body.clone());
            (200, vec![("ETag", format!("\"part-{number}\""))], json!({}))
        }
        ("POST", ["complete", oid]) => {
            let body = request.json();
            assert_eq!(body["oid"], **oid);
            let named = body["parts"].as_array().unwrap().iter().map(|part| {
                let number = part["partNumber"].as_u64().unwrap() as usize;
                assert_eq!(part["etag"], format!("\"part-{number}\""));
                number
            });
            let sent = state.parts.remove(*oid).unwrap_or_default();
            let contents: Vec<u8> = named.flat_map(|number| sent[&number].clone()).collect();
            if put(state, oid, contents) { (200, Vec::new(), json!({})) } else { refuse("the parts are not the file") }
        }
        _ => refuse("no such address"),
    }
}

#[test]
fn an_adapter_and_then_a_complete_model_are_pushed_in_one_commit_each() {
    let root = tempfile::tempdir().unwrap();
    let (run, _) = trained(root.path(), &[]);
    let hub = Hub::start();

    let listed = hub.command(&run, "ann/model", &["--dry_run"]).output().unwrap();
    assert!(listed.status.success(), "{}", errors(&listed));
    let text = String::from_utf8_lossy(&listed.stdout);
    for name in ["README.md", "adapter_model.safetensors", "classifier.json", "tokenizer.json", "report.html"] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert!(hub.requests().is_empty());
    let refused = hub.command(&run, "ann/model", &[]).output().unwrap();
    assert!(errors(&refused).contains("no token") && hub.requests().is_empty(), "{}", errors(&refused));
    let refused = hub.push(&run, "model", &[]);
    assert!(errors(&refused).contains("OWNER/NAME"), "{}", errors(&refused));

    hub.state.lock().unwrap().busy = 2;
    let pushed = hub.push(&run, "ann/model", &["--private"]);
    assert!(pushed.status.success() && errors(&pushed).contains("/commit/"), "{}", errors(&pushed));
    let repository = hub.repository("ann/model");
    assert!(repository.is_private && repository.commits.len() == 1);
    let file = |name: &str| String::from_utf8_lossy(&repository.files[name]).into_owned();
    let config: Value = serde_json::from_str(&file("adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "tiny-llama");
    for (name, contents) in &repository.files {
        let text = String::from_utf8_lossy(contents);
        for path in [root.path().to_str().unwrap(), "data/tiny-llama", env!("CARGO_MANIFEST_DIR")] {
            assert!(name == "tokenizer.json" || !text.contains(path), "{name} names {path}");
        }
        assert!(!text.contains("blue stone"), "{name} holds a text of a row");
    }
    assert!(file("report.html").contains("rows.csv"));
    // The token goes to the Hub alone.
    let requests = hub.requests();
    assert!(requests.iter().any(|(server, ..)| *server == "store"));
    assert!(requests.iter().all(|(server, _, has_token)| *has_token == (*server == "hub")), "{requests:?}");

    let again = hub.push(&run, "ann/model", &[]);
    assert!(errors(&again).contains("nothing to do"), "{}", errors(&again));
    assert_eq!(hub.repository("ann/model").commits.len(), 1);

    let merged = hub.push(&run, "ann/model", &["--merged"]);
    assert!(merged.status.success(), "{}", errors(&merged));
    let repository = hub.repository("ann/model");
    assert_eq!(repository.commits.len(), 2);
    assert!(repository.files["model.safetensors"].len() > 3 * PART, "sent in parts");
    assert!(!repository.files.contains_key("adapter_config.json") && repository.files.contains_key("config.json"));
    assert!(errors(&merged).contains("adapter_config.json"), "{}", errors(&merged));
}

#[test]
fn an_upload_that_breaks_leaves_no_commit() {
    let root = tempfile::tempdir().unwrap();
    let (run, _) = trained(root.path(), &[]);
    let hub = Hub::start();
    hub.state.lock().unwrap().broken_part = Some(3);
    let failed = hub.push(&run, "ann/model", &["--merged"]);
    let said = errors(&failed);
    assert!(!failed.status.success() && said.contains("part 3 of") && said.contains("signature has expired"), "{said}");
    assert!(!said.contains(TOKEN) && hub.repository("ann/model").commits.is_empty());
    assert!(!hub.requests().iter().any(|(_, request, _)| request.contains("/commit/")));

    // A repository that is there and public does not become private.
    let refused = hub.push(&run, "ann/model", &["--private"]);
    assert!(errors(&refused).contains("is public"), "{}", errors(&refused));
    // Somebody else's commit is not overwritten.
    hub.state.lock().unwrap().broken_part = None;
    hub.state.lock().unwrap().is_overtaken = true;
    let refused = hub.push(&run, "ann/model", &[]);
    assert!(errors(&refused).contains("push again"), "{}", errors(&refused));
    hub.state.lock().unwrap().is_overtaken = false;

    // A card that the Hub would refuse, and one that names a path, are refused before the upload.
    let seed = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let card = seed.join("best/README.md");
    hub.requests();
    std::fs::write(&card, "---\nlicense: bad\n---\n# x\n").unwrap();
    let refused = hub.push(&run, "ann/model", &[]);
    assert!(errors(&refused).contains("license") && !refused.status.success(), "{}", errors(&refused));
    std::fs::write(&card, format!("# x\n\nsee {}\n", root.path().join("rows.csv").display())).unwrap();
    let refused = hub.push(&run, "ann/model", &[]);
    assert!(errors(&refused).contains("a path of this machine"), "{}", errors(&refused));
    assert!(!hub.requests().iter().any(|(_, request, _)| request.contains("lfs") || request.contains("/commit/")));
}

/// `PYTHON=…/python cargo test --release --test main -- --ignored huggingface_hub`, with a Python that has it: the same
/// server, driven by the protocol's own client.
#[test]
#[ignore = "needs a Python with huggingface_hub, named by PYTHON"]
fn pythons_huggingface_hub_speaks_with_the_same_server() {
    let hub = Hub::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), "---\nlicense: mit\n---\n# x\n").unwrap();
    std::fs::write(folder.path().join("small.safetensors"), vec![1_u8; 1000]).unwrap();
    let large: Vec<u8> = (0..3 * PART + 77).map(|index| (index % 251) as u8).collect();
    std::fs::write(folder.path().join("large.safetensors"), &large).unwrap();
    let script = "import sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n\
                  api.create_repo('ann/py', private=True)\napi.create_repo('ann/py', exist_ok=True)\n\
                  print(api.upload_folder(repo_id='ann/py', folder_path=sys.argv[1]).oid)\n";
    let output = Command::new(std::env::var("PYTHON").expect("PYTHON names a Python"))
        .args(["-c", script])
        .arg(folder.path())
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_TOKEN", TOKEN)
        // Version 2 prefers a store of their own protocol.
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let repository = hub.repository("ann/py");
    assert!(repository.is_private && repository.commits.len() == 1 && repository.files["large.safetensors"] == large);
}
