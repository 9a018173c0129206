//! A real Prometheus scrapes a job and is asked what it has seen.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "ranks/programs.rs"]
mod programs;
#[expect(dead_code, reason = "its other half is for jobs under bad weather")]
#[path = "ranks/mod.rs"]
mod ranks;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ranks::{PROGRAM, Started, job};

/// The rank program, when this process is one.
#[test]
fn rank_main() {
    if let Ok(program) = std::env::var(PROGRAM) {
        programs::run(&program);
    }
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

/// A server that ends with the test.
struct Prometheus {
    process: Child,
    directory: std::path::PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn prometheus(target: &str, address: &str) -> Prometheus {
    let directory = std::env::temp_dir().join(format!("prometheus-test-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let configuration = format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: windlass\n    static_configs:\n      - targets: ['{target}']\n"
    );
    let file = directory.join("prometheus.yml");
    std::fs::write(&file, configuration).unwrap();
    let process = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Prometheus { process, directory }
}

/// What Prometheus answers to a query for one sample.
fn query(address: &str, expression: &str) -> Option<f64> {
    let encoded: String = expression.bytes().map(|b| format!("%{b:02x}")).collect();
    let answer: serde_json::Value =
        serde_json::from_str(&get(address, &format!("/api/v1/query?query={encoded}"))?).ok()?;
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

#[test]
fn prometheus_counts_what_the_job_did() {
    for program in ["prometheus", "promtool"] {
        let version =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !version.is_ok_and(|s| s.success()) {
            println!("skipped: Prometheus scrapes a job, because {program} is not installed");
            return;
        }
    }
    let mut running = Started::start(job(&["-n", "2", "--metrics", "127.0.0.1:0"], "thousand"));
    let url = running.await_lines("metrics at http://", 1).remove(0);
    let target = url.trim_end_matches("/metrics").to_owned();
    running.await_lines("counted", 2);

    let text = get(&target, "/metrics").unwrap();
    let mut check =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(check.wait().unwrap().success(), "promtool does not like:\n{text}");

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let server = prometheus(&target, &address);
    // By expression: the operations of both ranks, and what each did.
    let expected = [
        ("sum(windlass_operations_total{collective=\"all_reduce\"})", 2000.0),
        ("sum(windlass_operations_total{collective=\"broadcast\"})", 14.0),
        ("sum(windlass_bytes_total{collective=\"all_reduce\"})", 2000.0 * 1024.0),
        ("sum(windlass_rank_operations_total{collective=\"all_reduce\",rank=\"1\"})", 1000.0),
        ("sum(windlass_errors_total)", 0.0),
    ];
    let begin = Instant::now();
    for (expression, value) in expected {
        loop {
            let answer = query(&address, expression);
            if answer == Some(value) {
                break;
            }
            let late = begin.elapsed() > Duration::from_secs(15);
            assert!(!late, "{expression} is {answer:?}, not {value}; the job says:\n{text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // Small operations are timed once in sixteen times, and count sixteen times each.
    let timed = query(&address, "sum(windlass_operation_seconds_count{collective=\"all_reduce\"})").unwrap();
    assert!((timed - 2000.0).abs() <= 32.0 && timed % 16.0 == 0.0, "{timed} operations in the histogram");
    let buckets =
        "histogram_quantile(0.5, sum by (le) (windlass_operation_seconds_bucket{collective=\"all_reduce\"}))";
    let median = query(&address, buckets).unwrap();
    assert!(median > 0.0 && median < 1.0, "a median of {median} s");
    drop(server);
}
