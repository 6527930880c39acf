//! A person who is asked through the supervisor. Called by the pipeline.

use std::os::fd::OwnedFd;

use bulkhead_approval::{Asker, Question as Asked};

use crate::pipeline::{Approver, MAX_OBJECT, Question};

/// Whoever answers at the command line.
#[derive(Debug)]
pub(crate) struct Person(Asker);

impl Person {
    /// Reached on this socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Asker::new(socket))
    }
}

impl Approver for Person {
    fn ask(&self, question: &Question<'_>) -> Result<String, String> {
        // Shortened, it would be a consent to what nobody has seen.
        if question.objects.len() >= MAX_OBJECT {
            return Err("it touches more than a person can be shown".to_owned());
        }
        let asked = Asked {
            capability: "tool.call".to_owned(),
            object: [question.tool, question.objects, question.arguments]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(" "),
            why: format!(
                "it takes a person's consent, and can do harm: {}",
                question.risk.as_str()
            ),
            task: question.task.map(str::to_owned),
        };
        match self.0.ask(asked) {
            Ok(answer) => answer,
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_approval::{Answer, MAX_MESSAGE_BYTES, Request};
    use bulkhead_toolbox::Risk;
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
    };
    use std::thread;

    fn question(objects: &str) -> Question<'_> {
        Question {
            actor: "web/agent",
            tool: "fs.delete",
            risk: Risk::Destructive,
            objects,
            arguments: "{\"path\":\"/srv/a\"}",
            task: Some("connection 1"),
        }
    }

    fn person() -> (Person, OwnedFd) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        (Person::new(ours), theirs)
    }

    #[test]
    fn a_person_sees_the_tool_and_what_it_does_to_what() {
        let (person, supervisor) = person();
        for allowed in [true, false] {
            thread::scope(|scope| {
                let asked = scope.spawn(|| person.ask(&question("fs.write:/srv/a")));
                let mut buffer = vec![0; MAX_MESSAGE_BYTES];
                let (length, _) =
                    recv(&supervisor, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
                let request: Request = serde_json::from_slice(&buffer[..length]).unwrap();
                assert_eq!(
                    request.question.object,
                    "fs.delete fs.write:/srv/a {\"path\":\"/srv/a\"}"
                );
                assert!(request.question.why.contains("destructive"));
                assert_eq!(request.question.task.as_deref(), Some("connection 1"));
                let answer = Answer {
                    id: request.id,
                    allowed,
                    reason: "said so".to_owned(),
                };
                send(
                    &supervisor,
                    &serde_json::to_vec(&answer).unwrap(),
                    SendFlags::NOSIGNAL,
                )
                .unwrap();
                let said = "said so".to_owned();
                assert_eq!(
                    asked.join().unwrap(),
                    if allowed { Ok(said) } else { Err(said) }
                );
            });
        }
    }

    #[test]
    fn nobody_consents_to_what_is_not_shown() {
        let (person, supervisor) = person();
        assert!(person.ask(&question(&"x".repeat(MAX_OBJECT))).is_err());
        drop(supervisor);
        assert_eq!(
            person.ask(&question("x")),
            Err("nobody can be asked".to_owned())
        );
    }
}
