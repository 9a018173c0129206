//! `--metrics`: the job's metrics over HTTP, for Prometheus.
//!
//! Everything a client can use up is bounded: connections, the bytes of a request, and the time of one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::error::{RunError, errno_of};

const REQUEST_BYTES: usize = 8 * 1024;
const CONNECTIONS: usize = 16;
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// Where the text comes from: `None` while the job has no metrics.
pub(crate) type MetricsText = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Binds `address` and serves it from threads of its own for the rest of the process's life. Returns the address
/// that was bound, which differs where the port was 0.
pub(crate) fn serve(address: SocketAddr, text: MetricsText) -> Result<SocketAddr, RunError> {
    let refused = |error: std::io::Error| RunError::Metrics { address, errno: errno_of(&error) };
    let listener = TcpListener::bind(address).map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || accept(&listener, &text))
        .map_err(refused)?;
    Ok(bound)
}

fn accept(listener: &TcpListener, text: &MetricsText) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or a client that left while waiting: the next may fare better.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let place = Place::take(&open);
        if place.count > CONNECTIONS {
            // Dropped without an answer: an answer would take time that somebody is using up.
            continue;
        }
        let text = Arc::clone(text);
        let thread = std::thread::Builder::new().name("metrics-client".to_owned()).spawn(move || {
            let _place = place;
            // A client that is gone or too slow is its own loss.
            let _ = answer(stream, &text);
        });
        drop(thread);
    }
}

/// One of the connections that are open at once.
#[derive(Debug)]
struct Place {
    open: Arc<AtomicUsize>,
    count: usize,
}

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        Self { open: Arc::clone(open), count: open.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream, text: &MetricsText) -> std::io::Result<()> {
    stream.set_write_timeout(Some(REQUEST_TIME))?;
    let request = read_request(&mut stream)?;
    let (status, body) = respond(&request, text);
    let head_only = request.starts_with(b"HEAD ");
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if !head_only {
        response.push_str(&body);
    }
    stream.write_all(response.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with unread bytes would reset the connection and could take the answer with it.
    let mut rest = [0_u8; 1024];
    let deadline = Instant::now() + REQUEST_TIME;
    while Instant::now() < deadline && stream.read(&mut rest)? > 0 {}
    Ok(())
}

/// The head of a request, up to its empty line, its size limit, its time limit or the client's end.
fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + REQUEST_TIME;
    let mut request = Vec::new();
    let mut buffer = [0_u8; 1024];
    while request.len() < REQUEST_BYTES && !ends_head(&request) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(request)
}

fn ends_head(request: &[u8]) -> bool {
    request.windows(4).any(|bytes| bytes == b"\r\n\r\n") || request.windows(2).any(|bytes| bytes == b"\n\n")
}

fn respond(request: &[u8], text: &MetricsText) -> (&'static str, String) {
    if !ends_head(request) {
        return match request.len() {
            REQUEST_BYTES.. => {
                ("431 Request Header Fields Too Large", "the request is too large\n".to_owned())
            }
            _ => ("400 Bad Request", "not an HTTP request\n".to_owned()),
        };
    }
    let line = request.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return ("400 Bad Request", "not an HTTP request\n".to_owned());
    };
    if !version.starts_with(b"HTTP/1.") {
        return ("400 Bad Request", "only HTTP/1 is spoken here\n".to_owned());
    }
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => match text() {
            Some(text) => ("200 OK", text),
            None => ("503 Service Unavailable", "the job has no metrics yet\n".to_owned()),
        },
        (b"GET" | b"HEAD", _) => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET and HEAD are served\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let text: MetricsText = Arc::new(|| Some("windlass_ranks 4\n".to_owned()));
        serve(SocketAddr::from(([127, 0, 0, 1], 0)), text).unwrap()
    }

    fn request(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        String::from_utf8_lossy(&response).into_owned()
    }

    #[test]
    fn metrics_have_their_type_and_other_paths_are_unknown() {
        let address = server();
        let response = request(address, b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("Content-Type: text/plain; version=0.0.4"), "{response}");
        assert!(response.ends_with("\r\n\r\nwindlass_ranks 4\n"), "{response}");
        let head = request(address, b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 17") && head.ends_with("\r\n\r\n"), "{head}");
        for path in ["/", "/metricsx", "/metrics/"] {
            let response = request(address, format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
            assert!(response.starts_with("HTTP/1.1 404 "), "{path}: {response}");
        }
        assert!(request(address, b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn garbage_and_floods_leave_it_serving() {
        let address = server();
        assert!(request(address, b"\xff\x00\x01garbage\n\n").starts_with("HTTP/1.1 400 "));
        assert!(request(address, b"GET /metrics").starts_with("HTTP/1.1 400 "));
        assert!(request(address, &vec![b'a'; REQUEST_BYTES * 2]).starts_with("HTTP/1.1 431 "));
        // More silent clients than places: they lose theirs when the time is up, and others are served again.
        let silent: Vec<_> = (0..2 * CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
        for mut client in silent {
            let mut byte = [0_u8; 1];
            // Ends when the server hangs up.
            let _ = client.read(&mut byte);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while !request(address, b"GET /metrics HTTP/1.1\r\n\r\n").contains("windlass_ranks 4") {
            assert!(Instant::now() < deadline, "the server no longer answers");
        }
    }
}
