//! The gate's corpus, and that it does not matter how the bytes arrive.

use proptest::prelude::*;

use super::*;

fn verdict(head: &str) -> Result<Head, Violation> {
    parse(head.as_bytes())
}

#[test]
fn ordinary_requests_pass() {
    let plain = Head { body: Body::None, upgrade: false };
    for head in [
        "GET / HTTP/1.1\r\nHost: a.b\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a.b:8080\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a.b\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost:a.b\r\n\r\n",
        "PROPFIND /x?y=%20&z HTTP/1.1\r\nHost: a.b \r\nX-A:\r\nX-B: \u{e9}\r\n\r\n",
        "GET http://A.b/x HTTP/1.1\r\nHost: a.b:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nUpgrade: websocket\r\n\r\n",
    ] {
        assert_eq!(verdict(head), Ok(plain), "{head:?}");
    }
    assert_eq!(
        verdict("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"),
        Ok(Head { body: Body::Length(5), upgrade: false })
    );
    assert_eq!(
        verdict("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"),
        Ok(Head { body: Body::Chunked, upgrade: false })
    );
    assert_eq!(
        verdict("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n"),
        Ok(Head { body: Body::None, upgrade: true })
    );
}

/// (what is wrong, the head); shared with the test over raw sockets.
pub(crate) const BAD: &[(Violation, &str)] = {
    use Violation as V;
    &[
        (
            V::LengthAndEncoding,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            V::LengthAndEncoding,
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        ),
        (V::ContentLength, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n"),
        (V::ContentLength, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n"),
        (V::ContentLength, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n"),
        (V::ContentLength, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
        (V::ContentLength, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        (V::TransferEncoding, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (V::TransferEncoding, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
        (V::TransferEncoding, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n"),
        (V::TransferEncoding, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (
            V::TransferEncoding,
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (V::NoHost, "GET / HTTP/1.1\r\n\r\n"),
        (V::NoHost, "GET / HTTP/1.0\r\n\r\n"),
        (V::DuplicateHost, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        (V::Host, "GET / HTTP/1.1\r\nHost: a@b/c\r\n\r\n"),
        (V::Host, "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        (V::Host, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        (V::Host, "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        (V::Host, "GET / HTTP/1.1\r\nHost: a:80:90\r\n\r\n"),
        (V::HostMismatch, "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::HostMismatch, "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Target, "GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n"),
        (V::Target, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Target, "GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Target, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Target, "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Target, "GET /\u{1} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Method, "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Method, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Method, "get / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Method, "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::RequestLine, " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::Version, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        (V::Version, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        (V::RequestLine, "GET /\r\nHost: a\r\n\r\n"),
        (V::RequestLine, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::RequestLine, "GET / x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (V::LineEnding, "GET / HTTP/1.1\nHost: a\n\n"),
        (V::LineEnding, "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        (V::Header, "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n"),
        (V::Header, "GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n"),
        (V::Header, "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"),
        (V::Header, "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n"),
        (V::Header, "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n"),
        (V::Header, "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
        (V::Folded, "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
        (V::Folded, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        (V::Expect, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n"),
    ]
};

#[test]
fn every_bad_head_is_refused_by_name() {
    for (violation, head) in BAD {
        let parsed = verdict(head);
        // A control character in a value is the line's fault before it is the coding's.
        let control = head.contains('\u{b}') && parsed == Err(Violation::Header);
        assert!(parsed == Err(*violation) || control, "{head:?}: {parsed:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let mut gate = Gate::default();
    let fed = gate.feed(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(MAX_HEAD)).as_bytes());
    assert_eq!(fed, Fed { pass: 0, refused: Some(Violation::TooLarge) });

    let lines = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
    assert!(verdict(&lines(MAX_HEADERS)).is_ok());
    assert_eq!(verdict(&lines(MAX_HEADERS + 1)), Err(Violation::TooManyHeaders));
    assert_eq!(Gate::default().feed(b"\x16\x03\x01").refused, Some(Violation::Method));
}

#[test]
fn nothing_passes_after_a_refused_head() {
    let mut gate = Gate::default();
    let good = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let bytes = format!("{good}GET / HTTP/1.1\r\n\r\n{good}");
    let fed = gate.feed(bytes.as_bytes());
    assert_eq!(fed, Fed { pass: good.len(), refused: Some(Violation::NoHost) });
    assert_eq!(gate.heads(), 2);
    assert_eq!(gate.feed(good.as_bytes()), Fed { pass: 0, refused: None });
}

#[test]
fn a_chunked_request_is_the_last() {
    let mut gate = Gate::default();
    let bytes = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET";
    assert_eq!(gate.feed(bytes), Fed { pass: bytes.len(), refused: None });
    assert_eq!(gate.last(), Some(1));
}

proptest! {
    /// However the stream is cut, the same bytes pass and the same head is refused.
    #[test]
    fn the_cut_does_not_matter(
        picks in prop::collection::vec(0_usize..5, 1..5),
        cuts in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let parts = [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n0123\r\n\r\n9",
            "\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ];
        let bytes: String = picks.iter().map(|pick| parts[*pick]).collect();
        let bytes = bytes.as_bytes();
        let whole = Gate::default().feed(bytes);

        let mut gate = Gate::default();
        let (mut passed, mut end, mut refused) = (0, 0, None);
        for cut in cuts.iter().cycle() {
            end = (end + cut).min(bytes.len());
            let fed = gate.feed(&bytes[passed..end]);
            passed += fed.pass;
            refused = fed.refused;
            if refused.is_some() || end == bytes.len() { break; }
        }
        prop_assert_eq!(Fed { pass: passed, refused }, whole);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let fed = Gate::default().feed(&bytes);
        prop_assert!(fed.pass <= bytes.len());
    }
}
