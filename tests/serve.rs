//! The server, over real connections: the built program, trained classifiers, HTTP on this machine.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const TEXTS: &[&str] = &[
    "chess",
    "a program that plays chess against you and shows the board in a window",
    "Converts images between formats, from the command line, without a display",
    "",
    "ünïcödé — 日本語のテキスト 🎲",
    "daemon that watches the network and writes what it sees into a log, where others read it; it never sleeps",
    "a\nb\tc \"quoted\" \\ <b>markup</b>",
];

/// Two classifiers over one base: 12 labels and rank 3, 3 labels and rank 8.
struct Trained {
    _root: tempfile::TempDir,
    runs: [PathBuf; 2],
}

fn llmcls(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("llmcls").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).env_remove("LLMCLS_API_KEY");
    command
}

fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let labels = "data.label_columns=[use_gameplaying,interface_graphical,works_with_image]";
        let runs = [("a", "3", None), ("b", "8", Some(labels))].map(|(name, rank, labels)| {
            let out = root.path().join(name);
            let mut train = llmcls(&["train", "--config", "configs/tiny.yaml", "--quiet", "--override_output_root"]);
            train.arg(&out).args(["--set", "train.max_steps=4", "--set", "data.max_val_samples=20"]);
            train.args(["--set", "data.max_test_samples=20", "--set", &format!("model.lora_r={rank}")]);
            train.args(labels.iter().flat_map(|labels| ["--set", labels]));
            let output = train.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let found = fs::read_dir(out.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap();
            found.path()
        });
        Trained { _root: root, runs }
    })
}

/// A running server, ended with the test.
pub(crate) struct Server {
    child: Child,
    address: String,
    admin: Option<String>,
    log: Arc<Mutex<String>>,
}

impl Server {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = llmcls(&["serve", "--port", "0"]);
        command.args(arguments).stderr(Stdio::piped()).stdout(Stdio::null());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        thread::spawn(move || {
            errors.lines().map_while(Result::ok).for_each(|line| *written.lock().unwrap() += &(line + "\n"));
        });
        let mut server = Self { child, address: String::new(), admin: None, log };
        let begin = Instant::now();
        while server.address.is_empty() {
            let log = server.log();
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none() && begin.elapsed() < Duration::from_secs(120), "not ready: {ended:?} {log}");
            for line in log.lines() {
                let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.split(['/', '"']).next().unwrap());
                server.address = after("ready at http://").unwrap_or_default().to_owned();
                if line.contains("are loaded and dropped") {
                    server.admin = after("http://").map(str::to_owned);
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn both(more: &[&str]) -> Self {
        let [a, b] = trained().runs.each_ref().map(|run| run.to_str().unwrap());
        let (a, b) = (format!("a={a}"), format!("b={b}"));
        Self::start(&[&["--run", &a, "--run", &b], more].concat())
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        send(&self.address, method, path, headers, body)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("Content-Type", "application/json")], &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "")
    }

    /// A number of `/metrics`, by the beginning of its line.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |line| line.trim().parse().unwrap())
    }

    fn signal(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// All that it has logged so far.
    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.head.lines().filter_map(|line| line.split_once(':'));
        found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }
}

/// One request on a connection of its own; the answer until the server closes it.
fn send(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "Host") {
        head += &format!("Host: {address}\r\n");
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    // A server that refuses a body by its length reads none of it.
    let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes());
    read_answer(&mut stream)
}

fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut body = body.to_owned();
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Answer { status, head: head.to_owned(), body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        whole += &rest[..size];
        body = rest.get(size + 2..).unwrap_or("");
    }
    whole
}

#[derive(serde::Deserialize)]
struct Printed<'a> {
    #[serde(borrow)]
    probs: &'a RawValue,
    #[serde(borrow)]
    predicted: &'a RawValue,
}

/// The probabilities and labels that `predict` prints for texts, as it prints them.
fn predicted(run: &Path, texts: &[String]) -> Vec<(String, String)> {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in.jsonl"), directory.path().join("out.jsonl"));
    let rows =
        texts.iter().enumerate().map(|(id, text)| json!({"uid": id.to_string(), "text": text}).to_string() + "\n");
    fs::write(&input, rows.collect::<String>()).unwrap();
    let mut predict = llmcls(&["predict", "--quiet", "--run"]);
    let done = predict.arg(run).arg(&input).arg("-o").arg(&output).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let lines = fs::read_to_string(&output).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str::<Printed<'_>>(line).unwrap())
        .map(|line| (line.probs.get().to_owned(), line.predicted.get().to_owned()))
        .collect()
}

fn results(body: &str) -> Vec<(String, String)> {
    #[derive(serde::Deserialize)]
    struct Results<'a> {
        #[serde(borrow)]
        results: Vec<Printed<'a>>,
    }
    let parsed: Results<'_> = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    parsed.results.iter().map(|row| (row.probs.get().to_owned(), row.predicted.get().to_owned())).collect()
}

/// Texts of 1 to about 200 words.
fn mixed_texts() -> Vec<String> {
    let long = |count: usize| TEXTS[5].repeat(count);
    let mut texts: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    texts.extend([long(2), long(9), format!("{} {}", TEXTS[1], long(3)), "x ".repeat(300)]);
    texts
}

/// 32 clients, texts of all lengths, two classifiers of other ranks and labels in the same batches.
#[test]
fn answers_are_those_that_predict_prints_whatever_else_is_in_the_batch() {
    let texts = mixed_texts();
    let expected = trained().runs.each_ref().map(|run| predicted(run, &texts));
    let server = Server::both(&["--batch_tokens", "400"]);
    thread::scope(|scope| {
        for client in 0..32 {
            let (server, texts, expected) = (&server, &texts, &expected);
            scope.spawn(move || {
                for round in 0..12 {
                    let which = (client + round) % 2;
                    let first = (client * 5 + round * 3) % texts.len();
                    let count = [1, 1, 2, 5][(client + round / 2) % 4].min(texts.len() - first);
                    let asked = &texts[first..first + count];
                    let name = ["a", "b"][which];
                    let answer = server.post("/v1/predict", &json!({"texts": asked, "model": name}));
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    assert_eq!(results(&answer.body), expected[which][first..first + count], "client {client}");
                }
            });
        }
    });
    let (batches, texts) = (server.metric("llmcls_batch_texts_count"), server.metric("llmcls_batch_texts_sum"));
    assert!(texts > 1.5 * batches, "{texts} texts in {batches} batches: nothing was mixed");
    assert_eq!((server.metric("llmcls_bases"), server.metric("llmcls_models")), (1.0, 2.0));
    let whole = server.post("/v1/predict", &json!({"texts": mixed_texts()})).json();
    let row = |index: usize| (&whole["results"][index]["truncated"], &whole["results"][index]["tokens"]);
    assert_eq!(row(0).0, &json!(false));
    assert_eq!(row(8), (&json!(true), &json!(128)));
    assert_eq!(whole["model"], "a");
}

/// The words' weights are those that `predict --explain` prints, of a classifier whose base two share.
#[test]
fn explanations_are_those_that_predict_prints() {
    let server = Server::both(&[]);
    for (name, run) in ["a", "b"].iter().zip(&trained().runs) {
        let text = TEXTS[1];
        let printed = llmcls(&["predict", "--quiet", "--explain", "--text", text, "--run"]).arg(run).output().unwrap();
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        let expected: Value = serde_json::from_slice(&printed.stdout).unwrap();
        let answer = server.post("/v1/predict", &json!({"texts": [text], "model": name, "explain": true}));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let why = &answer["results"][0]["why"];
        assert!(why[0]["words"].as_array().unwrap().len() > 5, "{why}");
        assert_eq!(why, &expected["why"]);
        assert_eq!(answer["results"][0]["probs"], expected["probs"]);
    }
    let plain = server.post("/v1/predict", &json!({"texts": ["chess"]})).json();
    assert!(plain["results"][0].get("why").is_none());
    let two = server.post("/v1/predict", &json!({"texts": ["a", "b"], "explain": true}));
    assert!(two.status >= 400 && two.body.contains("one text at a time"), "{}", two.body);
}

/// Texts of several windows in one batch with texts of one.
#[test]
fn windows_of_long_texts_are_read_as_predict_reads_them() {
    let root = tempfile::tempdir().unwrap();
    let runs = ["mean", "max"].map(|pooling| {
        let out = root.path().join(pooling);
        let mut train = llmcls(&["train", "--config", "configs/tiny.yaml", "--quiet", "--override_output_root"]);
        train.arg(&out).args(["--set", "train.max_steps=3", "--set", "data.max_val_samples=9"]);
        train.args(["--set", "data.max_test_samples=9", "--set", "data.max_length=40"]);
        train.args(["--set", "data.long_text=windows", "--set", &format!("data.window_pooling={pooling}")]);
        let output = train.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_dir(out.join("tiny-llama/debtags")).unwrap().next().unwrap().unwrap().path()
    });
    let texts = mixed_texts();
    let [a, b] = runs.each_ref().map(|run| run.display().to_string());
    let server = Server::start(&["--run", &format!("a={a}"), "--run", &format!("b={b}")]);
    let (mixed, one) = thread::scope(|scope| {
        let ask = |name: &'static str| {
            let (server, texts) = (&server, &texts);
            scope.spawn(move || server.post("/v1/predict", &json!({"texts": texts, "model": name})))
        };
        let (a, b) = (ask("a"), ask("b"));
        (b.join().unwrap(), a.join().unwrap())
    });
    assert_eq!(results(&one.body), predicted(&runs[0], &texts));
    assert_eq!(results(&mixed.body), predicted(&runs[1], &texts));
    // 300 words are less than 8 windows of 40 tokens can hold, or more: the answer says which.
    let rows = one.json()["results"].clone();
    assert!(rows.as_array().unwrap().iter().any(|row| row["tokens"].as_u64() > Some(40)));
}

#[test]
fn the_forms_of_other_servers_are_answered_as_they_answer() {
    let server = Server::both(&[]);
    let ours = server.post("/v1/predict", &json!({"texts": [TEXTS[1]]})).json()["results"][0].clone();
    let labels: Vec<&str> = ours["labels"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
    let probability = |label: &str| &ours["probs"][labels.iter().position(|other| *other == label).unwrap()];
    // text-embeddings-inference
    let one = server.post("/predict", &json!({"inputs": TEXTS[1]})).json();
    assert_eq!(one.as_array().unwrap().len(), 12);
    for score in one.as_array().unwrap() {
        assert_eq!(&score["score"], probability(score["label"].as_str().unwrap()));
    }
    let scores: Vec<f64> = one.as_array().unwrap().iter().map(|score| score["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b));
    assert_eq!(server.post("/predict", &json!({"inputs": [[TEXTS[1]], [TEXTS[0]]]})).json()[0], one);
    assert_eq!(server.post("/predict", &json!({"inputs": [TEXTS[0], TEXTS[2], TEXTS[1]]})).json()[2], one);
    assert_eq!(server.post("/predict", &json!({"inputs": [TEXTS[1]]})).json(), json!([one]));
    for pair in [json!([TEXTS[0], TEXTS[1]]), json!([[TEXTS[0]], [TEXTS[0], TEXTS[1]]])] {
        let refused = server.post("/predict", &json!({"inputs": pair}));
        assert_eq!((refused.status, refused.json()["error_type"].as_str().unwrap()), (422, "invalid"));
        assert!(refused.body.contains("pair of sentences"), "{}", refused.body);
    }
    let raw = server.post("/predict", &json!({"inputs": TEXTS[1], "raw_scores": true})).json();
    let logit = raw[0]["score"].as_f64().unwrap();
    assert!((1.0 / (1.0 + (-logit).exp()) - scores[0]).abs() < 1e-6);
    let long = TEXTS[5].repeat(20);
    let refused = server.post("/predict", &json!({"inputs": long}));
    assert!(refused.status == 413 && refused.body.contains("truncate"), "{}", refused.body);
    assert_eq!(server.post("/predict", &json!({"inputs": long, "truncate": true})).status, 200);
    assert_eq!(server.post("/predict?model=b", &json!({"inputs": "x"})).json().as_array().unwrap().len(), 3);
    // vLLM
    let answer = server.post("/classify", &json!({"model": "a", "input": [TEXTS[0], TEXTS[1]]})).json();
    let item = &answer["data"][1];
    assert_eq!((&item["probs"], &item["num_classes"], &item["index"]), (&ours["probs"], &json!(12), &json!(1)));
    assert_eq!((&item["label"], &answer["object"], &answer["model"]), (&one[0]["label"], &json!("list"), &json!("a")));
    let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens > ours["tokens"].as_u64().unwrap() && answer["usage"]["total_tokens"] == tokens);
    assert_eq!(server.post("/classify", &json!({"input": long})).json()["error"]["code"], 413);
    assert_eq!(server.post("/classify", &json!({"input": long, "truncate_prompt_tokens": -1})).status, 200);
    assert_eq!(server.get("/v1/models").json()["data"][1]["id"], "b");
    kserve(&server, &ours);
    sagemaker(&server, &ours);
}

fn kserve(server: &Server, ours: &Value) {
    let input = |shape: Value| json!({"name": "x", "shape": shape, "datatype": "BYTES", "data": [TEXTS[0], TEXTS[1]]});
    let body = json!({"id": "42", "inputs": [input(json!([2]))]});
    let answer = server.post("/v2/models/a/infer", &body).json();
    assert_eq!((&answer["id"], &answer["model_name"]), (&json!("42"), &json!("a")));
    let output = |name: &str| {
        let outputs = answer["outputs"].as_array().unwrap();
        outputs.iter().find(|output| output["name"] == name).unwrap().clone()
    };
    let probs = output("probs");
    assert_eq!((&probs["shape"], &probs["datatype"]), (&json!([2, 12]), &json!("FP32")));
    assert_eq!(&json!(probs["data"].as_array().unwrap()[12..]), &ours["probs"]);
    assert_eq!(output("tokens")["data"][1], ours["tokens"]);
    let only = json!({"inputs": [input(json!([2, 1]))], "outputs": [{"name": "predicted"}]});
    let only = server.post("/v2/models/b/infer", &only).json();
    assert_eq!((&only["outputs"][0]["shape"], only.get("id")), (&json!([2, 3]), None));
    for wrong in [json!([3]), json!([1, 2]), json!([])] {
        assert_eq!(server.post("/v2/models/a/infer", &json!({"inputs": [input(wrong)]})).status, 422);
    }
    assert_eq!(server.post("/v2/models/none/infer", &body).status, 404);
    assert_eq!(server.get("/v2").json()["name"], "llmcls");
    assert_eq!(server.get("/v2/health/live").json()["live"], true);
    assert_eq!(server.get("/v2/health/ready").status, 200);
    assert_eq!(server.get("/v2/models/b/ready").json(), json!({"name": "b", "ready": true}));
    assert_eq!(server.get("/v2/models/b").json()["outputs"][0]["shape"], json!([-1, 3]));
    assert_eq!(server.get("/v2/models/c/ready").status, 404);
}

fn sagemaker(server: &Server, ours: &Value) {
    assert_eq!((server.get("/ping").status, server.get("/ping").body.as_str()), (200, ""));
    for inputs in [json!({"inputs": TEXTS[1]}), json!({"instances": [TEXTS[1]]})] {
        assert_eq!(server.post("/invocations", &inputs).json()["predictions"], json!([ours]));
    }
    let lines = format!("{}\n\n{}\n{}\n", json!(TEXTS[1]), json!({"text": TEXTS[0]}), json!({"inputs": TEXTS[2]}));
    let answer = server.request("POST", "/invocations", &[("Content-Type", "application/jsonlines")], &lines);
    assert_eq!(answer.header("content-type"), Some("application/jsonlines"));
    let rows: Vec<Value> = answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[0]), (3, ours));
    let csv = format!("\"{}\"\nchess\n", TEXTS[2]);
    let answer = server.request("POST", "/invocations?model=b", &[("Content-Type", "text/csv")], &csv);
    let mut table = csv::ReaderBuilder::new().has_headers(false).from_reader(answer.body.as_bytes());
    let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
    assert_eq!((rows.len(), rows[0].len()), (2, 4));
    let unquoted = server.request("POST", "/invocations", &[("Content-Type", "text/csv")], "a, b\n");
    assert!(unquoted.status == 422 && unquoted.body.contains("quote"), "{}", unquoted.body);
    let headers = [("Content-Type", "text/csv"), ("Accept", "application/json")];
    let answer = server.request("POST", "/invocations", &headers, "chess\n").json();
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 1);
    let headers = [("Content-Type", "text/csv"), ("Accept", "image/png")];
    assert_eq!(server.request("POST", "/invocations", &headers, "chess\n").status, 415);
}

#[test]
fn bad_requests_are_told_what_is_wrong_and_large_ones_are_refused() {
    let server = Server::both(&["--max_texts", "3", "--max_kib", "4", "--max_tokens", "150"]);
    let json = [("Content-Type", "application/json")];
    for (body, status, says) in [
        ("{\"texts\": [\"a\"", 400, "not JSON"),
        ("", 400, "not JSON"),
        ("\u{0}", 400, "not JSON"),
        ("[]", 422, ""),
        ("{}", 422, "texts"),
        ("{\"texts\": []}", 422, "no texts"),
        ("{\"texts\": [7]}", 422, "string"),
        ("{\"texts\": [\"a\"], \"modle\": \"a\"}", 422, "modle"),
        ("{\"texts\": [\"a\"], \"model\": \"c\"}", 404, "a, b"),
        ("{\"texts\": [\"a\", \"b\", \"c\", \"d\"]}", 413, "3 are taken"),
    ] {
        let answer = server.request("POST", "/v1/predict", &json, body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(answer.json()["error"].as_str().unwrap().contains(says), "{body}: {}", answer.body);
    }
    let long = "x ".repeat(1000);
    let answer = server.post("/v1/predict", &json!({"texts": [long, long]}));
    assert!(answer.status == 413 && answer.body.contains("150 tokens"), "{}", answer.body);
    let answer = server.post("/v1/predict", &json!({"texts": ["x".repeat(5000)]}));
    assert!(answer.status == 413 && answer.body.contains("4096 bytes"), "{}", answer.body);
    let answer = server.request("POST", "/v1/predict", &[("Content-Type", "text/plain")], "{\"texts\": [\"a\"]}");
    assert_eq!(answer.status, 415);
    assert_eq!((server.get("/v1/predict").status, server.get("/nothing").status), (405, 404));
    assert_eq!(server.metric("llmcls_failures_total{kind=\"malformed\"}"), 3.0);
    assert_eq!(server.post("/v1/predict", &json!({"texts": ["still there"]})).status, 200);
    let paths = server.get("/openapi.json").json()["paths"].clone();
    let described: Vec<&str> = paths.as_object().unwrap().keys().map(String::as_str).collect();
    for route in ["/predict", "/v1/predict", "/classify", "/invocations", "/v2/models/{name}/infer", "/metrics"] {
        assert!(described.contains(&route), "{route}");
    }
    assert_eq!(server.get("/info").json()["models"][1]["labels"].as_array().unwrap().len(), 3);
}

/// One text is a batch: the first request is in work while the others come.
#[test]
fn a_full_queue_answers_429_and_clients_that_have_gone_cost_nothing() {
    let server = Server::both(&["--max_texts", "200", "--max_queue", "202", "--batch_tokens", "1"]);
    let large = json!({"texts": vec![TEXTS[5]; 200]});
    thread::scope(|scope| {
        let first = scope.spawn(|| server.post("/v1/predict", &large));
        while server.metric("llmcls_queue_texts") < 200.0 && !first.is_finished() {
            thread::sleep(Duration::from_millis(2));
        }
        let busy = server.post("/v1/predict", &large);
        assert_eq!(busy.status, 429, "{}", busy.body);
        assert!(busy.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
        // A client that sends and goes: its text is dropped, not computed.
        let body = json!({"texts": [TEXTS[0]], "model": "b"}).to_string();
        let mut gone = TcpStream::connect(&server.address).unwrap();
        let head =
            format!("POST /v1/predict HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n", server.address);
        write!(gone, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        drop(gone);
        assert_eq!(first.join().unwrap().status, 200);
    });
    assert_eq!(server.metric("llmcls_queue_texts"), 0.0);
    let computed = server.metric("llmcls_texts_total{model=\"b\"}");
    assert!(computed + server.metric("llmcls_abandoned_total") <= 1.0);
}

#[test]
fn slow_senders_are_cut_off_and_others_are_served_meanwhile() {
    let server = Server::both(&["--read_timeout", "1", "--max_connections", "8"]);
    let begin = Instant::now();
    let mut heads: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    heads.iter_mut().for_each(|stream| stream.write_all(b"POST /v1/predict HT").unwrap());
    let mut body = TcpStream::connect(&server.address).unwrap();
    let head = format!("POST /v1/predict HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n", server.address);
    write!(body, "{head}Content-Length: 500\r\n\r\n{{\"texts\": [").unwrap();
    assert_eq!(server.post("/v1/predict", &json!({"texts": ["meanwhile"]})).status, 200);
    let answer = read_answer(&mut body);
    assert_eq!((answer.status, answer.json()["error_type"].as_str().unwrap()), (408, "slow"));
    heads.iter_mut().for_each(|stream| drop(read_answer(stream)));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(server.post("/v1/predict", &json!({"texts": ["after"]})).status, 200);
}

#[test]
fn keys_hosts_and_origins_decide_who_may_ask() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    fs::write(&keys, "first-key\nsecond-key\n").unwrap();
    let server = Server::both(&[
        "--api_key_file",
        keys.to_str().unwrap(),
        "--allow_origin",
        "https://good.example",
        "--allow_host",
        "llm.example",
        "--log_format",
        "json",
    ]);
    let body = json!({"texts": ["secret words"]}).to_string();
    let ask = |headers: &[(&str, &str)]| {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        server.request("POST", "/v1/predict", &headers, &body)
    };
    let refused = ask(&[]);
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    for wrong in ["Bearer first", "Bearer first-key2", "Basic first-key", "first-key", "Bearer"] {
        assert_eq!(ask(&[("Authorization", wrong)]).status, 401, "{wrong}");
    }
    for right in ["Bearer first-key", "bearer second-key"] {
        assert_eq!(ask(&[("Authorization", right)]).status, 200, "{right}");
    }
    for (path, status) in [
        ("/health", 200),
        ("/ping", 200),
        ("/", 200),
        ("/openapi.json", 200),
        ("/metrics", 401),
        ("/info", 401),
        ("/x", 401),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let key = ("Authorization", "Bearer first-key");
    for (host, status) in
        [("evil.example", 403), ("127.0.0.1.evil.example:80", 403), ("llm.example", 200), ("localhost:1", 200)]
    {
        assert_eq!(ask(&[key, ("Host", host)]).status, status, "{host}");
    }
    let allowed =
        |origin: &str| ask(&[key, ("Origin", origin)]).header("access-control-allow-origin").map(str::to_owned);
    assert_eq!(allowed("https://good.example").as_deref(), Some("https://good.example"));
    assert_eq!((allowed("https://evil.example"), allowed("null")), (None, None));
    let asked = ("Access-Control-Request-Method", "POST");
    let preflight = |origin: &str| server.request("OPTIONS", "/v1/predict", &[("Origin", origin), asked], "").status;
    assert_eq!((preflight("https://good.example"), preflight("https://evil.example")), (204, 401));
    let log = server.log();
    let line = log.lines().rfind(|line| line.contains("/v1/predict") && line.contains("200")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["texts"], &line["model"], &line["method"]), (&json!(1), &json!("a"), &json!("POST")));
    assert!(!log.contains("secret words") && !log.contains("first-key"), "{log}");
}

#[test]
fn after_sigterm_requests_in_work_are_answered_and_the_exit_is_0() {
    let mut server = Server::both(&["--batch_tokens", "1"]);
    let texts = json!({"texts": vec![TEXTS[5]; 150]});
    let answer = thread::scope(|scope| {
        let asked = scope.spawn(|| server.post("/v1/predict", &texts));
        while server.metric("llmcls_queue_texts") < 150.0 && !asked.is_finished() {
            thread::sleep(Duration::from_millis(2));
        }
        server.signal();
        asked.join().unwrap()
    });
    assert_eq!((answer.status, answer.json()["results"].as_array().unwrap().len()), (200, 150));
    let begin = Instant::now();
    let status = server.child.wait().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(25));
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(TcpStream::connect(&server.address).is_err());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn best(run: &Path) -> PathBuf {
    let seed = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.join("best").is_dir());
    seed.unwrap().join("best")
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn models_come_and_go_through_their_directory_and_the_admin_address() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = trained().runs.each_ref().map(|run| best(run));
    copy(&a, &directory.path().join("first"));
    let server = Server::start(&["--models", directory.path().to_str().unwrap(), "--admin", "127.0.0.1:0"]);
    let status = |model: &str| server.post("/v1/predict", &json!({"texts": ["x"], "model": model})).status;
    assert_eq!((status("first"), status("second")), (200, 404));
    copy(&b, &directory.path().join(".second"));
    fs::rename(directory.path().join(".second"), directory.path().join("second")).unwrap();
    until("the second is served", || status("second") == 200);
    assert_eq!(server.metric("llmcls_bases"), 1.0);
    // A damaged one is no reason to end, nor to serve it.
    fs::create_dir(directory.path().join("third")).unwrap();
    fs::write(directory.path().join("third/adapter_config.json"), "{").unwrap();
    fs::remove_dir_all(directory.path().join("first")).unwrap();
    until("the first is dropped", || status("first") == 404);
    assert_eq!((status("third"), status("second")), (404, 200));
    let admin = server.admin.as_deref().unwrap();
    let json = [("Content-Type", "application/json")];
    let load = |name: &str, run: &Path| {
        send(admin, "PUT", &format!("/models/{name}"), &json, &json!({"run": run}).to_string())
    };
    let loaded = load("by-hand", &trained().runs[0]);
    assert_eq!((loaded.status, loaded.json()["labels"].as_array().unwrap().len()), (200, 12), "{}", loaded.body);
    assert_eq!(status("by-hand"), 200);
    // In place of the one that has the name, while it is used.
    thread::scope(|scope| {
        let asked: Vec<_> =
            (0..8).map(|_| scope.spawn(|| (0..20).map(|_| status("by-hand")).collect::<Vec<_>>())).collect();
        for run in [&trained().runs[1], &trained().runs[0], &trained().runs[1]] {
            assert_eq!(load("by-hand", run).status, 200);
        }
        for statuses in asked {
            assert_eq!(statuses.join().unwrap(), [200; 20]);
        }
    });
    let wrong = load("none", Path::new("/nowhere"));
    assert!(wrong.status == 422 && wrong.body.contains("no such run"), "{}", wrong.body);
    assert_eq!(load("a%20b", &trained().runs[0]).status, 422);
    assert_eq!(send(admin, "GET", "/models", &[("Host", "evil.example")], "").status, 403);
    assert_eq!(send(admin, "DELETE", "/models/by-hand", &[], "").status, 204);
    assert_eq!((status("by-hand"), send(admin, "DELETE", "/models/by-hand", &[], "").status), (404, 404));
    assert_eq!(send(&server.address, "PUT", "/models/x", &json, "{}").status, 404, "not for everyone");
    let listed = send(admin, "GET", "/models", &[], "").json();
    assert_eq!(listed["models"][0]["name"], "second");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let run = trained().runs[0].to_str().unwrap();
    let server = Server::both(&[]);
    let port = server.address.rsplit_once(':').unwrap().1;
    for (arguments, says) in [
        (vec!["--run", "/nowhere"], "no such run directory"),
        (vec!["--run", run, "--port", port], "another server"),
        (vec!["--run", run, "--run", run], "NAME=RUN"),
        (vec!["--run", run, "--api_key_file", "/dev/null"], "holds no key"),
        (vec!["--run", run, "--set", "data.id_column=x"], "model.model_name"),
        (vec!["--models", "/nowhere"], "no such directory"),
        (vec!["--run", run, "--precision", "int8"], "has not been measured"),
        (vec!["--run", run, "--admin", "0.0.0.0:0"], "set a key"),
    ] {
        let any_port: &[&str] = if arguments.contains(&"--port") { &[] } else { &["--port", "0"] };
        let output = llmcls(&["serve"]).args(&arguments).args(any_port).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let server = Server::both(&[]);
    let page = server.get("/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    for path in ["/", "/page.js", "/page.css"] {
        let text = server.get(path).body;
        let elsewhere =
            text.match_indices("http").filter(|(at, _)| !text[*at..].starts_with("http://www.w3.org/2000/svg"));
        assert_eq!(elsewhere.count(), 0, "{path}");
    }
}
