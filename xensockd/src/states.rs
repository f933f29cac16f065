//! Decides a backend's next step from the states of a device's two ends.
//!
//! A pure function of the states at one moment, so a missed change does not matter.

use xen::xenbus::State;

/// The nodes of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The frontend's state.
    pub(crate) front: State,
    /// This end's state, which the toolstack may write.
    pub(crate) back: State,
    /// Whether the toolstack keeps the device.
    pub(crate) online: bool,
}

impl View {
    /// Whether the frontend has closed, or not started.
    pub(crate) fn is_front_closed(&self) -> bool {
        matches!(self.front, State::Closed | State::Unknown | State::Initialising)
    }
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for a change.
    Wait,
    /// Write this end's nodes and wait for the frontend's.
    Offer,
    /// Use the frontend's nodes.
    Connect,
    /// Free everything of the guest's, then go to Closing.
    Close,
    /// Both ends have freed everything: go to Closed.
    Closed,
}

/// Returns the next step, where `mine` is the state that this end last wrote.
pub(crate) fn next_step(mine: State, view: View) -> Step {
    use State::*;
    // The toolstack requests the end by writing this end's state, or `online`.
    if view.back == Closing && mine != Closing && mine != Closed || !view.online {
        return match mine {
            Closed => Step::Wait,
            _ if view.is_front_closed() => Step::Closed,
            Closing => Step::Wait,
            _ => Step::Close,
        };
    }
    // Other nodes have taken the place of those that this end wrote its state to: the toolstack has
    // removed the device and made it again.
    if view.back == Initialising && mine != Unknown {
        return Step::Offer;
    }
    match (view.front, mine) {
        (Initialised, InitWait) => Step::Connect,
        (Initialised | Connected, Connected) => Step::Wait,
        // The frontend is closing, or has yet to see that this end or an earlier backend closes.
        (Initialised | Connected | Closing, Closing) => Step::Wait,
        (Connected | Closing, _) => Step::Close,
        (Closed | Unknown, Closing) => Step::Closed,
        (Closed | Unknown, Connected) => Step::Close,
        // The frontend starts again, or may start.
        (_, InitWait) | (Unknown, Closed) => Step::Wait,
        _ => Step::Offer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::*;

    fn step(mine: State, front: State) -> Step {
        next_step(mine, View { front, back: mine, online: true })
    }

    #[test]
    fn a_device_is_offered_connected_and_closed_in_the_order_of_the_specification() {
        assert_eq!(step(Unknown, Initialising), Step::Offer);
        assert_eq!(step(InitWait, Initialising), Step::Wait);
        assert_eq!(step(InitWait, Initialised), Step::Connect);
        assert_eq!(step(Connected, Initialised), Step::Wait);
        assert_eq!(step(Connected, Connected), Step::Wait);
        assert_eq!(step(Connected, Closing), Step::Close);
        assert_eq!(step(Closing, Closing), Step::Wait);
        assert_eq!(step(Closing, Closed), Step::Closed);
        assert_eq!(step(Closed, Closed), Step::Offer);
        assert_eq!(step(InitWait, Closed), Step::Wait);
    }

    #[test]
    fn a_frontend_of_an_earlier_backend_is_asked_to_close_first() {
        assert_eq!(step(Unknown, Connected), Step::Close);
        assert_eq!(step(Closing, Connected), Step::Wait);
        assert_eq!(step(Closing, Closed), Step::Closed);
    }

    #[test]
    fn a_frontend_that_restarts_without_closing_gets_a_new_offer() {
        assert_eq!(step(Connected, Initialising), Step::Offer);
        assert_eq!(step(Closing, Initialising), Step::Offer);
        assert_eq!(step(Connected, Unknown), Step::Close);
    }

    #[test]
    fn a_device_that_was_made_again_gets_a_new_offer() {
        for mine in [InitWait, Connected, Closing, Closed] {
            for front in [Initialising, Initialised, Connected] {
                let again = View { front, back: Initialising, online: true };
                assert_eq!(next_step(mine, again), Step::Offer, "{mine:?} {front:?}");
            }
        }
    }

    #[test]
    fn the_toolstack_can_end_a_device_in_any_state() {
        for mine in [Unknown, InitWait, Connected] {
            let asked = View { front: Connected, back: Closing, online: true };
            assert_eq!(next_step(mine, asked), Step::Close);
        }
        for front in [Initialising, Initialised, Connected, Closing, Closed, Unknown] {
            let offline = |mine| next_step(mine, View { front, back: mine, online: false });
            let closed = matches!(front, Closed | Unknown | Initialising);
            assert_eq!(offline(Connected), if closed { Step::Closed } else { Step::Close });
            assert_eq!(offline(Closing), if closed { Step::Closed } else { Step::Wait });
            assert_eq!(offline(Closed), Step::Wait);
        }
    }

    #[test]
    fn the_steps_come_to_rest() {
        // After a step was taken and nothing else happens, the device comes to rest.
        let states = [Unknown, Initialising, InitWait, Initialised, Connected, Closing, Closed];
        for front in states {
            for mine in states {
                for online in [true, false] {
                    let mut view = View { front, back: mine, online };
                    let mut mine = mine;
                    let rests = (0..5).any(|_| {
                        mine = match next_step(mine, view) {
                            Step::Wait => return true,
                            Step::Offer => InitWait,
                            Step::Connect => Connected,
                            Step::Close => Closing,
                            Step::Closed => Closed,
                        };
                        view.back = mine;
                        false
                    });
                    assert!(rests, "{front:?} {mine:?} {online}");
                }
            }
        }
    }
}
