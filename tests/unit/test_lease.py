"""How long a worker may believe that its jobs are its own (DESIGN section 5, rule 3)."""

from packhorse.clock import ManualClock
from packhorse.worker.lease import Lease

LEASE_MS = 3_000


def test_a_lease_is_not_live_before_it_was_ever_renewed() -> None:
    assert not Lease(ManualClock(), LEASE_MS).live()


def test_it_is_measured_from_before_the_renewal_was_sent() -> None:
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    sent_ms = clock.boot_ms()
    clock.advance(900)
    lease.renewed(sent_ms)
    assert lease.age_ms() == 900


def test_a_handler_may_start_in_the_first_third_only() -> None:
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    lease.renewed(clock.boot_ms())
    clock.advance(LEASE_MS // 3)
    assert lease.fresh()
    clock.advance(1)
    assert not lease.fresh()
    assert lease.live()
    clock.advance(LEASE_MS * 2 // 3 - 1)
    assert not lease.live()


def test_it_is_fresh_until_the_instant_it_names_and_hardly_longer() -> None:
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    assert lease.fresh_until_ns <= clock.boot_ns()
    lease.renewed(clock.boot_ms())
    while clock.boot_ns() < lease.fresh_until_ns:
        assert lease.fresh()
        clock.advance(1)
    clock.advance(1)
    assert not lease.fresh()


def test_a_wall_clock_that_jumps_changes_nothing() -> None:
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    lease.renewed(clock.boot_ms())
    clock.jump(3_600_000)
    assert lease.fresh()
    clock.jump(-7_200_000)
    assert lease.age_ms() == 0


def test_an_older_renewal_that_arrives_late_does_not_shorten_it() -> None:
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    early_ms = clock.boot_ms()
    clock.advance(500)
    lease.renewed(clock.boot_ms())
    lease.renewed(early_ms)
    assert lease.age_ms() == 0


def test_a_renewal_in_time_leaves_earlier_claims_ours() -> None:
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    first_ms = clock.boot_ms()
    lease.renewed(first_ms)
    clock.advance(LEASE_MS - 1)
    lease.renewed(clock.boot_ms())
    assert lease.unbroken_since_ms == first_ms


def test_a_renewal_after_it_ran_out_makes_earlier_claims_doubtful() -> None:
    """Simulator seed 34310: the claim that revives the lease does not bring back what was reaped before it."""
    clock = ManualClock()
    lease = Lease(clock, LEASE_MS)
    lease.renewed(clock.boot_ms())
    clock.advance(LEASE_MS)
    revived_ms = clock.boot_ms()
    lease.renewed(revived_ms)
    assert lease.unbroken_since_ms == revived_ms


def test_the_keepers_renewals_count_and_revive_alike() -> None:
    """The same over the page: a runner that was stopped past its lease wakes up under the keeper's next renewal."""
    clock = ManualClock()
    page = [clock.boot_ms()]
    lease = Lease(clock, LEASE_MS, renewed_elsewhere=lambda: page[0])
    lease.renewed(page[0])
    clock.advance(LEASE_MS // 2)
    page[0] = clock.boot_ms()
    assert lease.fresh()  # the keeper renewed meanwhile
    clock.advance(LEASE_MS * 3)  # SIGSTOP: neither renews, others take the jobs
    page[0] = clock.boot_ms()  # SIGCONT: the keeper beats again
    assert lease.fresh()
    assert lease.unbroken_since_ms == page[0]
