//! A decision on the beginning of a stream stands, whatever follows; and what is read is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Progress,
    tls::{ClientHello, looks_like_client_hello},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let whole = ClientHello::parse(stream);
    match ClientHello::parse(&stream[..stream.len().min(cut.into())]) {
        Ok(Progress::NeedMore) => {}
        decided => assert_eq!(decided, whole),
    }
    if let Ok(Progress::Done(hello)) = whole {
        assert_eq!(looks_like_client_hello(stream), Look::Yes);
        if let Some(name) = hello.server_name {
            assert!((1..=253).contains(&name.len()));
            assert_eq!(name, name.to_ascii_lowercase());
            assert!(name.parse::<std::net::IpAddr>().is_err());
        }
        assert!(hello.alpn.iter().map(Vec::len).sum::<usize>() <= stream.len());
    }
});
