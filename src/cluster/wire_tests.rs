use super::*;

fn envelopes() -> Vec<Envelope<'static>> {
    let text = Payload {
        is_text: true,
        uncompressed: false,
        bytes: "Grüße".as_bytes(),
    };
    let binary = Payload {
        is_text: false,
        uncompressed: true,
        bytes: b"\xff\0\x01",
    };
    let empty = Payload { bytes: b"", ..text };
    let connection = RemoteConnection {
        node: u32::MAX,
        shard: 1,
        slot: u32::MAX - 1,
        generation: 0,
    };
    let message = |payload, except, sent_at| Content::Message {
        payload,
        except,
        sent_at,
    };
    let heartbeat = |versions, is_last| Content::Heartbeat(Heartbeat { versions, is_last });
    let contents = [
        message(empty, None, 0),
        message(text, None, 1_700_000_000_000),
        message(binary, Some(connection), u64::MAX),
        heartbeat((1, 2), false),
        heartbeat((255, 0), true),
        Content::Direct(connection, DirectAction::Send(text)),
        Content::Direct(connection, DirectAction::Send(binary)),
        Content::Direct(
            connection,
            DirectAction::Close {
                code: 4_001,
                reason: "gone",
            },
        ),
        Content::Direct(connection, DirectAction::Join { room: "" }),
        Content::Direct(connection, DirectAction::Leave { room: "Grüße" }),
        Content::CloseUser {
            user: "Ada",
            code: 1_000,
            reason: "",
        },
        Content::Count {
            query: 0,
            room: None,
        },
        Content::Count {
            query: u64::MAX,
            room: Some("news"),
        },
        Content::Counted {
            query: 300,
            members: 20_000,
        },
        Content::Presence(b"\xff\0"),
    ];
    let nodes = [0, 1, 0x1234_5678, u32::MAX, 7].into_iter().cycle();
    let serials = [0, 1, 300, u64::MAX].into_iter().cycle();
    let envelopes = contents.into_iter().zip(nodes).zip(serials);
    envelopes
        .map(|((content, node), serial)| Envelope {
            node,
            serial,
            content,
        })
        .collect()
}

#[test]
fn encoded_envelope_decodes_to_itself() {
    for envelope in envelopes() {
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
}

#[test]
fn truncated_envelope_is_refused_or_has_less() {
    for envelope in envelopes() {
        let bytes = envelope.encode();
        for len in 0..bytes.len() {
            // Optional fields may be absent, and the payload may be shorter.
            if let Ok(shorter) = Envelope::decode(&bytes[..len]) {
                assert_eq!(shorter.node, envelope.node);
                assert_ne!(shorter, envelope);
            }
        }
    }
}

#[test]
fn unknown_fields_and_longer_values_are_skipped() {
    for envelope in envelopes() {
        let bytes = envelope.encode();
        let mut newer = bytes[..2].to_vec();
        // A field of a later version, such as a key, before and a known field that has grown.
        write_field(&mut newer, 200, b"a key of a later version");
        let mut node = envelope.node.to_le_bytes().to_vec();
        node.extend_from_slice(b"more");
        write_field(&mut newer, NODE, &node);
        newer.extend_from_slice(&bytes[2 + 6..]);
        assert_eq!(Envelope::decode(&newer), Ok(envelope));
    }
}

#[test]
fn bad_envelope_is_refused_with_its_cause() {
    let node = [NODE, 4, 0, 0, 0, 0];
    let with = |head: [u8; 2], rest: &[u8]| [&head, &node[..], rest].concat();
    for (bytes, cause) in [
        (vec![], BadEnvelope::Truncated),
        (vec![VERSION], BadEnvelope::Truncated),
        (with([0, TEXT], &[PAYLOAD]), BadEnvelope::Version(0)),
        (with([9, TEXT], &[PAYLOAD]), BadEnvelope::Version(9)),
        (with([VERSION, 99], &[PAYLOAD]), BadEnvelope::Kind(99)),
        (with([VERSION, TEXT], &[]), BadEnvelope::Missing(PAYLOAD)),
        (vec![VERSION, TEXT, PAYLOAD], BadEnvelope::Missing(NODE)),
        (
            with([VERSION, HEARTBEAT], &[]),
            BadEnvelope::Missing(VERSIONS),
        ),
        (with([VERSION, TEXT], &[PAYLOAD, 0xff]), BadEnvelope::Utf8),
        (
            with([VERSION, TEXT], &[EXCEPT, 2, 0, 0, PAYLOAD]),
            BadEnvelope::Field(EXCEPT),
        ),
        (with([VERSION, TEXT], &[77, 200]), BadEnvelope::Truncated),
        (
            with(
                [VERSION, TEXT],
                &[77, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            ),
            BadEnvelope::Truncated,
        ),
    ] {
        assert_eq!(Envelope::decode(&bytes), Err(cause), "{bytes:?}");
        assert!(!cause.to_string().is_empty());
    }
}

#[test]
fn random_bytes_never_panic() {
    // A generator that suffices to reach every branch; its seed is fixed, so a failure repeats.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    let seeds: Vec<_> = envelopes().iter().map(Envelope::encode).collect();
    for _ in 0..20_000 {
        let mut bytes = seeds[next() % seeds.len()].to_vec();
        for _ in 0..=next() % 4 {
            let at = next() % bytes.len();
            bytes[at] = next() as u8;
        }
        bytes.truncate(next() % (bytes.len() + 1));
        if let Ok(envelope) = Envelope::decode(&bytes) {
            // What was decoded can be sent on without a change of meaning.
            assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        }
    }
}
