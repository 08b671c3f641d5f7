//! Whatever the two sides say, each packet for one of them is one packet; numbers go up by one;
//! a packet of the server is carried whole; and no key is offered where nothing is brokered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Progress,
    mysql::{Answer, Authentication, FirstWords, Packet, Reply},
};

const GREETING: &[u8] = b"\x36\0\0\0\x0a5.5.2-m2\0\x0b\0\0\0dvH@I-CJ\0\xff\xff\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0*4d|cZwk4^]:\0";

fuzz_target!(|input: (bool, &[u8], Vec<(bool, &[u8])>)| {
    let (tls, answer, packets) = input;
    let Ok(Progress::Done((FirstWords::Greeting(greeting), _))) = FirstWords::parse(GREETING)
    else {
        panic!("a greeting");
    };
    let Ok(Answer::Response(response)) = Answer::parse(answer) else {
        return;
    };
    let mut authentication = if tls {
        Authentication::inside_tls(&greeting, response)
    } else {
        match Authentication::in_clear(&greeting, response) {
            Some((authentication, words)) => {
                assert_eq!(one_packet(&words).sequence, 2);
                authentication
            }
            None => return,
        }
    };
    let mut server = if tls { 2 } else { 1 };
    let opening = authentication.open();
    assert!(tls || opening == Ok(None));
    if let Ok(Some(reply)) = opening {
        act(reply, &mut authentication, &mut server, tls);
    }
    for (from_server, payload) in packets {
        let agent = authentication.sequence();
        if from_server {
            let told = authentication.hear_server(Packet {
                sequence: server,
                payload,
            });
            server = server.wrapping_add(1);
            let packet = one_packet(&told.words);
            assert_eq!((packet.sequence, packet.payload), (agent, payload));
            if told.last {
                return;
            }
        } else {
            let packet = Packet {
                sequence: agent,
                payload,
            };
            match authentication.hear_agent(packet) {
                Ok(reply) => act(reply, &mut authentication, &mut server, tls),
                Err(_) => return,
            }
        }
    }
});

fn act(reply: Reply, authentication: &mut Authentication, server: &mut u8, tls: bool) {
    let words = match reply {
        Reply::ToServer(words) => words,
        Reply::OfferKey => {
            assert!(tls);
            one_packet(&authentication.key(b"PEM"));
            return;
        }
        Reply::Decrypt(ciphertext) => {
            assert!(tls);
            match authentication.password(ciphertext.into()) {
                Ok(words) => words,
                Err(_) => return,
            }
        }
    };
    assert_eq!(one_packet(&words).sequence, *server);
    *server = server.wrapping_add(1);
}

fn one_packet(words: &[u8]) -> Packet<'_> {
    let Ok(Progress::Done(packet)) = Packet::parse(words) else {
        panic!("no packet");
    };
    assert_eq!(packet.length(), words.len());
    packet
}
