/*
 * The credential lock of safespawn (_credlock.c), as a model for spin: spawners and their
 * children, changers, one thread that forks, and the process that it makes.
 *
 * What is here is what the C does, one step for each of its atomic operations or system calls.
 * The comment at a step names the C functions that it stands for. A step that is guarded by
 * `#ifndef WITHOUT_...` can be taken out, and then one of the checks fails: steps.py has the
 * table, check_all.py runs it.
 *
 * Where the C does several things and one step stands for them:
 *
 *  - A loop around a compare-and-exchange that decides by the old value alone is one atomic step:
 *    it has no effect until the exchange works, or until the load that made it give up.
 *  - What only its owner can see (a slot that is TAKEN, a report before the clone) has no steps.
 *  - Two looks at things that only ever go one way, of which both are wanted, are one look: what
 *    the second saw was so, and what the first saw still was.
 *
 * Time is not counted: whatever waits for a moment may find that it is over, or not, at each look.
 * One thing about it is taken for granted: SS_CHANGE_GRACE_NS and SS_GRACE_NS after SIGKILL a
 * child runs no more on any processor. It is dead then, or asleep in the kernel for good.
 *
 * Left out: memory order (all is sequentially consistent), signals and their handlers (they are
 * blocked wherever the lock is held), libc's own children (guard_foreign), a changer that is not
 * allowed to signal the child, clone(2) in place of clone3(2), and a pid that is the wrong one
 * because a stranger shares our memory, other than in the forked process.
 */

/* ------------------------------------------------------------------ how much of it */

#ifndef SPAWNERS
#define SPAWNERS 2
#endif
#ifndef CHANGERS
#define CHANGERS 1
#endif
#ifndef FORKERS /* 0 or 1 */
#define FORKERS 0
#endif
#ifndef SPAWNS /* of each spawner, one after the other; 0: without end */
#define SPAWNS 1
#endif
#ifndef CHANGES /* of each changer */
#define CHANGES 1
#endif
#ifndef HOLDS /* EPOCH_TRIES of _spawn.py */
#define HOLDS 1
#endif
/*
 * Also: APART (no child shares memory), DEADLINES (spawns have them), CROWDED (there may be no
 * slot), FORKER_CHANGES (it forks in the middle of a change of its own), VANISHES (a thread may
 * end while it holds changes off), FAIR (time is a process, so that it goes on), STALLS
 * (children may hang), PATIENT (no such time is over: whoever gets in does so by its turn), ASLEEP
 * (waits end when they are woken, and only then).
 */

#define SHARE 1
#define APART 2
#define HOLD 3
#ifdef ONE_WINDOW
#ifndef KIND1
#define KIND1 SHARE
#endif
#ifndef KIND2
#define KIND2 SHARE
#endif
#define KIND(who) (who == 0 -> KIND0 : (who == 1 -> KIND1 : KIND2))
#endif

/*
 * In the big forms (ONE_WINDOW) some steps are one that are several in the small ones. Whatever the
 * others do between the steps they can do before or after the one:
 *
 *  - A changer that takes a slot (BUSY) and what it does with that. Meanwhile its owner waits and other
 *    changers wait or pass by, as they may do with a slot that is HELD or WATCHED still. That they
 *    wait (ss_slot_busy) can be taken out of the small forms only.
 *  - A spawner that is counted and HELD, or not HELD any more and not counted. Changers may overlook a
 *    slot that is HELD, and between the two no change is under way.
 *  - The birth of a child with memory of its own. It is seen by nobody, and looks when it likes.
 *  - The last child that is told and the effect of the change: a decision is void sooner, never later.
 *  - A changer goes through the slots in any order, and ends a hold whenever it likes: that is more than
 *    the C does.
 */
#ifdef ONE_WINDOW
#define THEN ;
#define AND_ON at = 0
#else
#define THEN } atomic {
#define AND_ON at++
#endif

#define THREADS (CHANGERS + FORKERS) /* that change */
#define BIT(who) (1 << (who))

/* ------------------------------------------------------------------ what is shared */

/* The lock word, with room for three of each. */
#define SPAWNER 1
#define IN_SPAWNERS 3
#define CHANGER 4
#define IN_CHANGERS 12
#define SPAWNER_WAITS 16
#define CHANGER_WAITS 32
byte word;

#define FREE 0 /* or TAKEN: nobody but its owner touches it */
#define HELD 1
#define WATCHED 2
#define BUSY 3
#define DROPPED 4
byte slot[SPAWNERS];
byte slot_killed;  /* these and all below with a bit for each spawner */
byte slot_moved;   /* slot->moved is there: the child has memory of its own */
byte watchers;
byte stale;        /* the epoch is another than at the spawner's last look */

/* The report of a window. */
#define UNNAMED 0
#define NAMED 1
#define DIED 2
byte owner[SPAWNERS];
byte moved;

/* The child of a spawner, and what is pending for it. */
#define NONE 0
#define USER 1  /* runs our code, on some processor */
#define EXEC 2  /* in execve */
#define LEFT 3  /* past the point of no return, not on our memory any more, with a signal pending */
#define PROGRAM 4 /* the same without: it may have run an instruction */
#define DEAD 5
#define REFUSED 6 /* has told ESTALE and is dead */
byte child[SPAWNERS];
byte shares;
byte stopped, killed;
#ifdef STALLS
byte stuck;
#endif

/* ------------------------------------------------------------------ what is to hold */

/* Threads that are inside the lock as changers, and not only by what its word says. */
byte under_way;

/* A child that shares our memory and may run on it. One that is killed and in the kernel may not. */
#define MAY_RUN(who) ((shares & BIT(who)) && (child[who] == USER || (child[who] == EXEC && !(killed & BIT(who)))))
#if SPAWNERS == 1
#define NONE_MAY_RUN (!MAY_RUN(0))
#elif SPAWNERS == 2
#define NONE_MAY_RUN (!MAY_RUN(0) && !MAY_RUN(1))
#else
#define NONE_MAY_RUN (!MAY_RUN(0) && !MAY_RUN(1) && !MAY_RUN(2))
#endif

/*
 * Whose decision is older than the begin or the end of each change; and whose is void, because
 * such a change takes effect, or has returned to who asked for it.
 */
byte decided; /* who rests on a decision: has read the epoch, and not yet got where nothing matters any more */
#ifndef FAIR
byte began[THREADS], ended[THREADS];
byte is_void;
#define ASSERT_DECISION_HOLDS(me) assert(!(is_void & BIT(me)))
#else
#define ASSERT_DECISION_HOLDS(me) skip
#endif

inline forget(me)
{
	stale = stale & ~BIT(me);
	decided = decided & ~BIT(me);
#ifndef FAIR
	is_void = is_void & ~BIT(me);
	began[0] = began[0] & ~BIT(me);
	ended[0] = ended[0] & ~BIT(me);
#if THREADS > 1
	began[1] = began[1] & ~BIT(me);
	ended[1] = ended[1] & ~BIT(me);
#endif
#if THREADS > 2
	began[2] = began[2] & ~BIT(me);
	ended[2] = ended[2] & ~BIT(me);
#endif
#endif
}

byte finished; /* processes */

/* ------------------------------------------------------------------ waiting */

#ifdef FAIR
bool is_late[THREADS]; /* SS_CHANGE_WAIT_NS is over */
bool waits[THREADS];
bool holds[SPAWNERS], holds_late[SPAWNERS];
bool spawns[SPAWNERS];
byte leaves; /* would leave its slot */

proctype Clock(byte me)
{
end:
	do
	:: atomic { waits[me] && !is_late[me] -> is_late[me] = true }
	od
}

proctype HoldClock(byte me)
{
end:
	do
	:: atomic { holds[me] && !holds_late[me] -> holds_late[me] = true }
	od
}
#endif

#ifdef ASLEEP
byte slept_on[THREADS];
byte asleep; /* a bit for each changer in futex(2) */
#define WAKE asleep = 0
#else
#define WAKE skip
#endif

/* ------------------------------------------------------------------ spawners */

/* ss_spawner_uncount, ss_lock_wake */
inline uncount()
{
	atomic {
		assert(word & IN_SPAWNERS);
		word = word - SPAWNER;
#ifndef WITHOUT_UNCOUNT_WAKE
		if
		:: !(word & IN_SPAWNERS) && (word & CHANGER_WAITS) -> WAKE
		:: else
		fi
#endif
	}
}

/* ss_hold_end, ss_lock_wake */
inline hold_end()
{
	atomic {
		word = word & ~SPAWNER_WAITS;
#ifndef WITHOUT_HOLD_END_WAKE
		WAKE
#endif
	}
}

/* ss_look, ss_look_at_lock, ss_lock_look: the epoch comes first */
inline decide(me)
{
	forget(me);
	decided = decided | BIT(me)
}

/* ss_window_reset */
inline reset(me)
{
#ifndef WITHOUT_WINDOW_RESET
	owner[me] = UNNAMED;
	moved = moved & ~BIT(me)
#else
	skip
#endif
}

#ifdef STALLS
#define IS_STUCK(who) (stuck & BIT(who))
#else
#define IS_STUCK(who) false
#endif

proctype Child(byte me)
{
end:
	do
	/* ss_child_become: ss_child_epoch is its last look, and ss_child_execve comes after it. */
	:: atomic {
		child[me] == USER && !(shares & BIT(me)) ->
		if
#ifndef WITHOUT_CHILD_LOOK
		:: moved & BIT(me) -> child[me] = REFUSED
		:: !(moved & BIT(me)) ->
#else
		:: true ->
#endif
			ASSERT_DECISION_HOLDS(me);
			child[me] = PROGRAM
		fi;
		forget(me)
	   }
	/* ss_child_execve. It may be killed already, and the signal not have come to its processor. */
	:: atomic { child[me] == USER && (shares & BIT(me)) && !IS_STUCK(me) -> child[me] = EXEC }
	/* It is past the point of no return. */
	:: atomic {
		child[me] == EXEC && !IS_STUCK(me) ->
		child[me] = LEFT;
#ifndef WITHOUT_ARM /* ss_child_arm: the kernel marks the futex */
		owner[me] = DIED;
#endif
		if /* whatever is pending comes before the first instruction of the program */
		:: killed & BIT(me)
		:: !(killed & BIT(me)) -> ASSERT_DECISION_HOLDS(me)
		fi;
		if
		:: (killed | stopped) & BIT(me)
		:: else -> child[me] = PROGRAM
		fi;
		forget(me)
	   }
#ifdef STALLS
	/* Stopped by others; or asleep in the kernel, where no signal ends it. */
	:: atomic { child[me] == USER && (shares & BIT(me)) && !IS_STUCK(me) -> stuck = stuck | BIT(me) }
	:: atomic { child[me] == EXEC && !IS_STUCK(me) -> stuck = stuck | BIT(me) }
	:: atomic { child[me] == USER && (shares & BIT(me)) && (killed & BIT(me)) -> child[me] = DEAD; stopped = stopped & ~BIT(me); forget(me) }
#else
	/* Killed by us or by others, or a step or execve has failed. */
	:: atomic { child[me] == USER && (shares & BIT(me)) -> child[me] = DEAD; stopped = stopped & ~BIT(me); forget(me) }
	:: atomic { child[me] == EXEC -> child[me] = DEAD; stopped = stopped & ~BIT(me); forget(me) }
#endif
	od
}

#ifdef ONE_WINDOW
#define BEGINS(me, kind) (KIND(me) == kind)
#else
#define BEGINS(me, kind) (kind == SHARE)
#endif

#ifdef WITHOUT_KILLED_RESET
#define KILLED_RESET(who) 0
#else
#define KILLED_RESET(who) BIT(who)
#endif

/* It is told that its program runs, or why not. */
inline finish(me)
{
	forget(me);
	shares = shares & ~BIT(me);
	slot_killed = slot_killed & ~KILLED_RESET(me);
	reset(me);
	tries = 0;
#ifdef FAIR
	spawns[me] = false;
#endif
#if SPAWNS
	spawn++;
	if
	:: spawn == SPAWNS -> finished++
	:: else
	fi
#endif
}

/* _begins_anew: once more, with memory of its own */
inline begin_anew(me)
{
#ifdef ONE_WINDOW
	finish(me);
	goto over
#else
	goto apart
#endif
}

#ifdef WITHOUT_WAITED_FIRST
#define IN_THE_WAY (IN_CHANGERS | CHANGER_WAITS)
#else
#define IN_THE_WAY IN_CHANGERS
#endif

#ifdef FAIR
#define BEGIN_HOLD(me) holds[me] = true
#define HOLD_IS_LATE(me) holds_late[me]
#define IS_OVER(me) holds_late[me]
#else
#define BEGIN_HOLD(me) skip
#define HOLD_IS_LATE(me) true
#define IS_OVER(me) false
#endif

#ifdef WITHOUT_LEAVE_BUSY
#define MAY_LEAVE(who) true
#else
#define MAY_LEAVE(who) (slot[who] != BUSY)
#endif

/* ss_conclude, ss_classify, ss_reap: the pidfd is closed, and its number another file's */
inline conclude(me)
{
	assert(child[me] == NONE || child[me] >= LEFT || (child[me] == EXEC && (killed & BIT(me)))); /* or it is not over */
	child[me] = NONE;
	stopped = stopped & ~BIT(me);
	killed = killed & ~BIT(me);
#ifdef STALLS
	stuck = stuck & ~BIT(me);
#endif
	if
	:: (slot_killed & BIT(me)) && !is_out -> begin_anew(me) /* SS_PREEMPTED */
	:: else -> is_out = false; finish(me); goto over
	fi
}

/* The same, for SS_RACE_DETECTED. */
inline conclude_apart(me)
{
	if
	:: child[me] == REFUSED && tries -> tries--; child[me] = NONE; decide(me); reset(me); BEGIN_HOLD(me); goto hold
	:: else -> child[me] = NONE; finish(me); goto over
	fi
}

/* In ss_hold: of what came until here the child's own ids tell (ss_child_creds_agree). */
inline enter_held(me)
{
	decide(me);
	slot_killed = slot_killed & ~KILLED_RESET(me);
	slot_moved = slot_moved | BIT(me);
	slot[me] = HELD
}

proctype Spawner(byte me)
{
	byte was, tries;
	bool is_out;
#if SPAWNS
	byte spawn;
#endif

next:
	/* ------------------------------------------------ with shared memory */
	if
	:: atomic {
		BEGINS(me, SHARE) ->
#ifdef FAIR
		spawns[me] = true;
#endif
		tries = HOLDS;
		decide(me);
		reset(me);
		shares = shares | BIT(me)
	   }
#ifdef ONE_WINDOW
	:: atomic { BEGINS(me, APART) -> decide(me); goto watch }
	:: atomic { BEGINS(me, HOLD) -> decide(me); goto hold }
#endif
	fi;
	atomic { /* ss_spawner_enter, ss_spawner_count */
		if
#ifndef WITHOUT_COUNT_LOOK
		:: word & IN_CHANGERS -> begin_anew(me)
#endif
#ifndef WITHOUT_WAITING_LOOK
		:: !(word & IN_CHANGERS) && (word & CHANGER_WAITS) -> begin_anew(me)
#endif
		:: else -> word = word + SPAWNER
		fi
	}
	atomic { /* ss_slot_take, ss_epoch_of; HELD a moment too early, but ss_preempt may overlook it */
		if
#ifdef CROWDED
		:: goto undo
#endif
#ifndef WITHOUT_ENTER_EPOCH
		:: stale & BIT(me) -> goto undo
		:: !(stale & BIT(me))
#else
		:: true
#endif
		fi;
		slot_killed = slot_killed & ~KILLED_RESET(me);
		slot_moved = slot_moved & ~BIT(me);
		slot[me] = HELD
	}
	atomic { /* ss_window_open, ss_clone, ss_clone_fill: the kernel names the child before it runs */
		if
		:: child[me] = USER; owner[me] = NAMED; assert(!under_way)
		:: goto leave /* it has failed, and may have stored a number for the pidfd all the same */
		fi
	}
#ifdef DEADLINES
	if /* ss_await_release */
	:: child[me] >= LEFT -> goto leave
	:: atomic { /* ss_bound */
		child[me] < LEFT ->
		is_out = true;
#ifndef WITHOUT_DEADLINE_KILL
		killed = killed | BIT(me)
#endif
	   }
	fi;
#ifndef WITHOUT_DEADLINE_GRACE /* ss_await_exit */
	child[me] != USER;
#endif
#else
	child[me] >= LEFT; /* vfork */
#endif
leave:
#ifdef FAIR
	leaves = leaves | BIT(me);
#endif
	atomic { /* ss_slot_leave */
		MAY_LEAVE(me);
#ifdef FAIR
		leaves = leaves & ~BIT(me);
#endif
		was = slot[me];
		slot[me] = FREE;
		/* A program must not have run, or it would be started twice; nor be left stopped. */
		assert(!(slot_killed & BIT(me)) || is_out || child[me] != PROGRAM);
		assert(child[me] < LEFT || child[me] == DEAD || !(stopped & BIT(me)) || (killed & BIT(me)));
		/* Whom a change has cost its child is told so. */
		assert(!(killed & BIT(me)) || is_out || (slot_killed & BIT(me)));
		if
#ifndef WITHOUT_LEAVE_COUNT
		:: was == HELD -> was = 0; goto leave_count
#endif
#ifdef WITHOUT_DROPPED_LOOK
		:: was == DROPPED -> was = 0; goto leave_count
#endif
		:: else -> was = 0; conclude(me)
		fi
	}
leave_count:
	atomic { uncount(); conclude(me) }
undo:
	atomic {
		shares = shares & ~BIT(me);
#ifndef WITHOUT_UNDO_COUNT
		uncount();
#endif
		begin_anew(me)
	}

	/* ------------------------------------------------ with memory of its own */
apart: /* _apart: _probe.look */
	atomic {
		shares = shares & ~BIT(me);
		decide(me);
		reset(me)
	}
watch: /* ss_window_enter, ss_watch */
	atomic { /* between the two a changer could only look in vain */
#ifdef CROWDED
		if
		:: moved = moved | BIT(me); goto born
		:: true
		fi;
#endif
#ifndef WITHOUT_WATCH_COUNT
		watchers = watchers + 1;
#endif
		slot[me] = WATCHED
	}
	atomic { /* ss_epoch_of, when it can be told already; ss_window_open, ss_clone */
		if
#ifndef WITHOUT_WATCH_EPOCH
		:: stale & BIT(me) -> moved = moved | BIT(me)
#endif
		:: else
		fi;
		child[me] = USER;
		goto await
	}
hold: /* ss_hold, from _native for the reason "epoch" */
#ifdef VANISHES
	if
	:: true -> goto over
	:: true
	fi;
#endif
#ifndef WITHOUT_HOLD_FLAG
	word = word | SPAWNER_WAITS;
#endif
	if
	:: atomic { /* ss_spawner_enter, ss_spawner_count: for one that has waited */
		!(word & IN_THE_WAY) ->
#ifndef WITHOUT_HOLD_CLEAR
		word = word & ~SPAWNER_WAITS;
#endif
		word = word + SPAWNER
#ifdef FAIR
		;
		holds[me] = false;
		holds_late[me] = false
#endif
#ifdef ONE_WINDOW
		;
		enter_held(me);
		child[me] = USER;
		goto await
#endif
	   }
	:: atomic { /* its time is over */
		HOLD_IS_LATE(me) ->
#ifdef FAIR
		holds[me] = false;
		holds_late[me] = false;
#endif
#ifndef WITHOUT_HOLD_END
		hold_end();
#endif
		goto watch
	   }
	:: (word & IN_THE_WAY) && !IS_OVER(me) -> goto hold
	fi;
	atomic { enter_held(me) }
born:
	atomic { child[me] = USER } /* ss_window_open, ss_clone */
await:
#ifdef FAIR
	atomic { child[me] >= LEFT -> leaves = leaves | BIT(me) };
#endif
	atomic { /* ss_await_release, ss_slot_leave */
		child[me] >= LEFT && MAY_LEAVE(me);
#ifdef FAIR
		leaves = leaves & ~BIT(me);
#endif
		was = slot[me];
		slot[me] = FREE;
		slot_moved = slot_moved & ~BIT(me);
		if
#ifndef WITHOUT_LEAVE_COUNT
#ifdef ONE_WINDOW
		:: was == HELD -> was = 0; uncount(); conclude_apart(me)
#else
		:: was == HELD -> was = 0; goto await_count
#endif
#endif
#ifndef WITHOUT_WATCH_UNCOUNT
		:: was == WATCHED -> was = 0; watchers = watchers - 1; conclude_apart(me)
#endif
		:: else -> was = 0; conclude_apart(me)
		fi
	}
await_count:
	atomic { uncount(); conclude_apart(me) }
over:
#if SPAWNS == 1
end:	false
#elif SPAWNS
end:	spawn < SPAWNS;
	goto next
#else
	goto next
#endif
}

/* ------------------------------------------------------------------ the forked process */

#if FORKERS
#define NOBODY 0
#define PARENT 1  /* also a number that the child may have, in a PID namespace of its own */
#define ITSELF 2
#define STRANGER 3 /* a vfork child of other code in the forked process */

#ifdef RAW_FORK
byte its_pid, its_since, its_word, itself; /* its copy of the lock, and who it is */
#endif

/* ss_lock_ours: of whoever uses it first. Two steps, and the pid says that both are done. */
inline take_over(who)
{
#ifdef WITHOUT_SINCE_FIRST
	atomic {
		if
		:: its_pid == NOBODY -> its_pid = who; took = true
		:: else -> took = false
		fi
	}
	if
	:: took -> its_since = ITSELF
	:: else
	fi;
	took = false
#else
	atomic {
		if
		:: its_pid == NOBODY && its_since == 0 -> its_since = ITSELF
		:: else
		fi
	}
	atomic {
		if
		:: its_pid == NOBODY -> its_pid = who
		:: else
		fi
	}
#endif
}

/*
 * ss_fork_prepare, then fork(2), and what the child does first. Its memory is its own: nobody
 * can tell when it does that, so all is done at once.
 */
inline fork(is_in)
{
#ifndef RAW_FORK
	byte its_pid, its_since, its_word, itself; /* its copy of the lock, and who it is */
#endif
	bool its_slots, beside, unsure, loader_is_held, in_change;

	atomic {
		beside = true;
#ifndef WITHOUT_WIPE /* ss_lock_map: MADV_WIPEONFORK */
		its_pid = NOBODY;
		its_since = 0;
		its_word = 0;
		its_slots = false;
#else
		its_pid = PARENT;
		its_since = PARENT;
		its_word = word;
		its_slots = slot[0] != FREE || watchers;
#endif
		in_change = is_in; /* its thread may be in the middle of one */
		if
		:: itself = ITSELF
		:: itself = PARENT
		fi;
		if /* another thread may be in dlopen */
		:: loader_is_held = true
		:: loader_is_held = false
		fi;
#ifndef RAW_FORK
		live()
#endif
	}
}

/* The first that the forked process does, as far as the lock is concerned. */
inline live()
{
#ifndef WITHOUT_FORK_CHILD /* ss_fork_child */
#ifndef WITHOUT_UNSURE
	unsure = beside;
#endif
	take_over(itself);
#endif
	/* A vfork child of other code changes credentials, and runs its program before it ends that. */
	take_over(STRANGER);
	if /* ss_change_begin, ss_lock_ours */
#ifndef WITHOUT_PID_LOOK
	:: its_pid != STRANGER
#endif
	:: else -> its_word = its_word + CHANGER
	fi;
	if /* ss_change_end, in the child, of what its thread had begun */
	:: !in_change
	:: in_change && itself != PARENT
#ifndef WITHOUT_END_SINCE /* the pid alone does not tell */
	:: in_change && its_since != PARENT
#endif
	:: else ->
		assert(its_word & IN_CHANGERS);
		its_word = its_word - CHANGER
	fi;
	take_over(itself);
	/* ss_lock_look asks the loader, and where a thread that is not here holds it that is for ever. */
	assert(unsure || !loader_is_held);
	/* Its lock is its own, and clean. */
	assert(its_pid == itself);
	assert(its_word == 0 && !its_slots);
	itself = NOBODY;
	its_pid = NOBODY;
	its_since = 0;
	its_word = 0;
	its_slots = false;
	beside = false;
	unsure = false;
	loader_is_held = false;
	in_change = false
}

#ifdef RAW_FORK
byte threads;
/* Two threads of a process that was forked past libc, so that no handler has run. */
proctype ForkedThread()
{
	bool took;
	byte since;

	itself != NOBODY;
	take_over(itself);
	atomic { /* ss_change_begin */
		its_pid == itself;
		its_word = its_word + CHANGER;
		since = its_since
	}
	atomic { /* ss_change_end */
		if
		:: its_since == since -> its_word = its_word - CHANGER
		:: else
		fi
	}
	atomic {
		finished++;
		threads++;
		if
		:: threads == 2 -> assert(its_word == 0)
		:: else
		fi
	}
}

#endif

proctype Forker()
{
	fork(false);
end:	false
}
#endif

/* ------------------------------------------------------------------ changers */

#define HAS_LEFT(who) (child[who] == DEAD || owner[who] == DIED)

#ifdef WITHOUT_CHANGES_WAIT
#define MAY_JOIN true
#elif defined(WITHOUT_HELD_OFF)
#define MAY_JOIN (!(word & IN_SPAWNERS))
#else
#define MAY_JOIN (!(word & IN_SPAWNERS) && (!(word & SPAWNER_WAITS) || (word & IN_CHANGERS)))
#endif

/*
 * In ss_preempt: when its turn came it was not HELD. Where time goes on that cannot be so for ever;
 * nor can the slot be BUSY whenever its owner looks, because there is a pause between two passes.
 */
#ifdef FAIR
#define MAY_PREEMPT(who) (slot[who] == HELD && !(leaves & BIT(who)))
#define MAY_OVERLOOK(who) (!MAY_PREEMPT(who))
#else
#define MAY_PREEMPT(who) (slot[who] == HELD)
#define MAY_OVERLOOK(who) true
#endif

#ifdef WITHOUT_GRACE
#define MAY_DROP(who) true
#elif defined(WITHOUT_DROP)
#define MAY_DROP(who) HAS_LEFT(who)
#else
#define MAY_DROP(who) (child[who] != USER)
#endif

#ifdef WITHOUT_END_MOVE
#define FROM_EFFECT goto out
#else
#define FROM_EFFECT goto move
#endif
#ifdef ONE_WINDOW
#define TO_EFFECT take_effect(); FROM_EFFECT
#else
#define TO_EFFECT goto effect
#endif

inline take_effect()
{
	assert(NONE_MAY_RUN);
#ifdef FORKER_CHANGES
	if
	:: me == CHANGERS -> fork(true)
	:: else
	fi;
#endif
#ifndef FAIR
#ifdef WITHOUT_BEGIN_MOVE
	began[me] = decided;
#endif
	is_void = is_void | began[me];
	began[me] = 0;
#endif
#if defined(WITHOUT_END_MOVE) && !defined(FAIR)
	ended[me] = decided;
#endif
	is_end = true
}

/* The next slot, or on. */
inline told_one()
{
	at++;
	if
	:: at < SPAWNERS -> goto tell
	:: at == SPAWNERS && !is_end -> at = 0; TO_EFFECT
	:: at == SPAWNERS && is_end -> at = 0; goto out
	fi
}

proctype Changer(byte me)
{
	byte at;
	bool had_left, is_end, is_held_off;
#if CHANGES
	byte change;
#endif

next:
#ifdef FAIR
	atomic { waits[me] = true; is_late[me] = false };
#endif
join: /* ss_change_begin, ss_changer_enter */
	atomic { /* ss_changer_join */
		if
		:: MAY_JOIN ->
			assert((word & IN_CHANGERS) < IN_CHANGERS);
			word = (word & ~CHANGER_WAITS) + CHANGER;
			under_way++;
#ifdef FAIR
			waits[me] = false;
			is_late[me] = false;
#endif
#ifndef WITHOUT_BEGIN_MOVE
			goto move
#else
			goto effect
#endif
		:: else
		fi;
#ifndef WITHOUT_CHANGER_WAITS
		word = word | CHANGER_WAITS;
#endif
#ifdef ASLEEP
		slept_on[me] = word
	}
	/* ss_change_sleep */
	if
	:: atomic { word == slept_on[me] -> asleep = asleep | BIT(me) }
	:: atomic { word != slept_on[me] }
	fi;
	!(asleep & BIT(me));
	goto join;
#else
#ifndef ONE_WINDOW
		is_held_off = (word & SPAWNER_WAITS) != 0;
#endif
		if /* sooner or later the wait is over: SS_CHANGE_WAIT_NS */
#ifdef FAIR
		:: !is_late[me] -> is_held_off = false; goto join
		:: else
#else
		:: is_held_off = false; goto join
		:: true
#endif
		fi
	}
#if !defined(WITHOUT_CHANGER_HOLD_END) && !defined(ONE_WINDOW)
	if
	:: atomic { is_held_off -> hold_end(); is_held_off = false }
	:: !is_held_off
	fi;
#endif
#ifndef ONE_WINDOW
	is_held_off = false;
#endif
#ifdef WITHOUT_BOUND
	goto join;
#endif
preempt: /* ss_preempt */
	atomic {
#ifdef ONE_WINDOW
		if
		:: hold_end()
		:: true
		fi;
#endif
		do
		:: at == SPAWNERS -> at = 0; goto join
		:: at < SPAWNERS && MAY_PREEMPT(at) -> slot[at] = BUSY; break
		:: at < SPAWNERS && MAY_OVERLOOK(at) -> at++
		od
		THEN /* ss_slot_preempt, ss_slot_child_left */
		had_left = HAS_LEFT(at);
		if
		:: slot_moved & BIT(at) ->
#ifndef WITHOUT_PREEMPT_TELL
			moved = moved | BIT(at);
#endif
			slot[at] = DROPPED;
			had_left = false;
			goto drop
#ifndef WITHOUT_NAMED_LOOK
		:: !(slot_moved & BIT(at)) && owner[at] == UNNAMED -> slot[at] = HELD; AND_ON; goto preempt
#endif
#ifndef WITHOUT_FIRST_LOOK
		:: !(slot_moved & BIT(at)) && owner[at] != UNNAMED && had_left ->
			slot[at] = DROPPED;
			had_left = false;
			goto drop
#endif
		:: else
		fi;
		if
		:: slot_killed & BIT(at) -> goto grace
		:: else
		fi
	}
#ifndef WITHOUT_STOP /* ss_slot_kill */
	atomic {
		assert(child[at] != NONE); /* it would be a process of others */
		assert(!had_left); /* it runs its program, and is not to be stopped */
		if
		:: child[at] != DEAD -> stopped = stopped | BIT(at)
		:: else
		fi
	}
#endif
#ifndef WITHOUT_SECOND_LOOK /* ss_slot_child_left */
	if
	:: atomic { /* it is let go on */
		HAS_LEFT(at) ->
#ifndef WITHOUT_CONTINUE
		assert(child[at] != NONE);
		stopped = stopped & ~BIT(at);
		if
		:: child[at] == LEFT -> child[at] = PROGRAM
		:: else
		fi;
#endif
		had_left = false;
		slot[at] = DROPPED;
		goto drop
	   }
	:: atomic { !HAS_LEFT(at) -> skip }
	fi;
#endif
	atomic {
		assert(child[at] != NONE);
		had_left = false;
#ifndef WITHOUT_KILL
		killed = killed | BIT(at);
		stopped = stopped & ~BIT(at); /* it counts no more */
#endif
#ifndef WITHOUT_KILLED_MARK
		slot_killed = slot_killed | BIT(at)
#endif
	}
grace: /* ss_slot_is_gone */
	atomic {
		had_left = false;
		if /* SS_CHANGE_GRACE_NS from the kill: see the top for what can be said of the child then */
		:: MAY_DROP(at) -> slot[at] = DROPPED
		:: else -> slot[at] = HELD; AND_ON; goto preempt
		fi
	}
drop:
	atomic {
#ifndef WITHOUT_DROP_COUNT
		uncount();
#endif
		AND_ON;
		goto preempt
	}
#endif /* ASLEEP */

move: /* ss_epoch_move */
	atomic {
		stale = decided;
#ifndef FAIR
		if
		:: is_end -> ended[me] = decided
		:: else -> began[me] = decided
		fi
#endif
	}
	atomic {
		if
		:: watchers == 0 && !is_end -> TO_EFFECT
		:: watchers == 0 && is_end -> goto out
		:: else
		fi
	}
tell: /* ss_slot_busy; one look at a time: the others are not seen in the same moment */
	if
#if defined(FAIR) || defined(ONE_WINDOW)
	:: atomic {
		slot[at] == WATCHED ->
#ifndef WITHOUT_TELL
		moved = moved | BIT(at);
#endif
		told_one()
	   }
#else
	:: atomic { slot[at] == WATCHED -> slot[at] = BUSY }
#endif
#ifdef WITHOUT_TELL_BUSY
	:: atomic { slot[at] == BUSY -> told_one() }
#endif
	:: atomic { slot[at] != WATCHED && slot[at] != BUSY -> told_one() }
	fi;
	atomic { /* its child sees the one, and who waits for the slot the other */
#ifndef WITHOUT_TELL
		moved = moved | BIT(at);
#endif
		slot[at] = WATCHED;
		told_one()
	}
effect: /* the function that is wrapped */
	atomic {
		take_effect();
		FROM_EFFECT
	}
out: /* ss_change_end, ss_changer_leave */
	atomic {
		is_end = false;
		under_way--;
#ifndef WITHOUT_CHANGER_LEAVE
		assert(word & IN_CHANGERS);
		word = word - CHANGER;
#endif
#ifndef FAIR
		is_void = is_void | ended[me];
		ended[me] = 0;
#endif
#if CHANGES
		change++;
		if
		:: change == CHANGES -> finished++
		:: else -> goto next
		fi
#else
		goto next
#endif
	}
end:	false
}

/* ------------------------------------------------------------------ all together */

#ifdef RAW_FORK
#define PROCESSES (SPAWNERS + CHANGERS + 2)
#elif defined(FORKER_CHANGES)
#define PROCESSES (SPAWNERS + CHANGERS + FORKERS)
#else
#define PROCESSES (SPAWNERS + CHANGERS)
#endif

init
{
	byte i;

	atomic {
		for (i : 0 .. SPAWNERS - 1) {
			run Spawner(i);
			run Child(i)
#if defined(FAIR) && !defined(PATIENT)
			;
			run HoldClock(i)
#endif
		}
		for (i : 0 .. CHANGERS - 1) {
			run Changer(i)
#if defined(FAIR) && !defined(PATIENT)
			;
			run Clock(i)
#endif
		}
#if FORKERS
#ifdef FORKER_CHANGES
		run Changer(CHANGERS);
#else
		run Forker();
#endif
#ifdef RAW_FORK
		run ForkedThread();
		run ForkedThread();
#endif
#endif
		i = 0
	}
#if SPAWNS && CHANGES
	atomic {
		finished == PROCESSES ->
		assert(word == 0);
		assert(watchers == 0);
		for (i : 0 .. SPAWNERS - 1) {
			assert(slot[i] == FREE)
		}
	}
#endif
}

#ifdef CHECK_CHANGER /* whoever wants to change does, in the end */
ltl changer { [] (waits[0] -> <> !waits[0]) }
#endif
#ifdef CHECK_SPAWNER /* whoever wants to spawn does, or is told why not */
ltl spawner { [] (spawns[0] -> <> !spawns[0]) }
#endif
#ifdef CHECK_HOLD /* one that holds changes off gets in */
ltl hold { [] (holds[0] -> <> !holds[0]) }
#endif
