"""Ranks that die or get stuck: the job ends and is resumed, or is supervised, or the others go on."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from chaos_runs.jobs import REDUCERS, STEPS, run
from chaos_runs.shop import Case, Shop, newest_step
from chaos_runs.strikes import HOWS, MOMENTS, Strike, drawn

ELASTIC_LIMIT_S = 2.0
SUPERVISED_LIMIT_S = 3.0
"""More than a start-up."""
LONGER = {"sync": 12000, "lbfgs": 600}
"""Steps of a run that others go on with: it is to be under way for longer than a second."""


def killed(shop: Shop, rng: Random, number: int) -> Case:
    """A rank is struck; the job ends; the same command with --resume, on other ranks, comes to the same model."""
    case = Case("kills", number)
    moment = list(MOMENTS)[number % len(MOMENTS)]
    how = rng.choice([how for how in HOWS if moment != "any" or how not in ("raise", "memory")])
    reducer = REDUCERS[number // len(MOMENTS) % len(REDUCERS)]
    with shop.job(rng, launcher=shop.launchers[number % len(shop.launchers)], reducer=reducer) as job:
        strike = drawn(rng, "0", moment, job.algorithm, how, job.ranks, STEPS[job.algorithm])
        case.what = {"launcher": job.launcher.name, "ranks": job.ranks, "reducer": job.reducer,
                     "algorithm": job.algorithm, "moment": moment, "how": how, "rank": strike.rank,
                     "place": strike.place, "call": strike.call, "delay_s": round(strike.delay_s, 4)}
        ended = run(job, [strike])
        shop.check_death(case, job, ended, strike.rank, how, orphaned=moment == "start-up")
        job.model.unlink(missing_ok=True)
        ranks, launcher, reducer = rng.randint(1, 4), rng.choice(shop.launchers), rng.choice(REDUCERS)
        case.what["resumed on"] = f"{launcher.name}, {ranks} ranks, {reducer}"
        shop.check_resumed(case, job.again(ranks=ranks, launcher=launcher, reducer=reducer),
                           newest_step(job.checkpoints))
    return case


def supervised(shop: Shop, rng: Random, number: int) -> Case:
    """A rank is struck under supervision, once or twice; the run comes to its end by itself."""
    case = Case("supervised", number)
    moments = [moment for moment in MOMENTS if moment != "any"]
    moment, how = moments[number % len(moments)], rng.choice(("kill", "raise", "memory", "supervisor"))
    with shop.job(rng, supervised=True, launcher=shop.launchers[number % len(shop.launchers)]) as job:
        strikes = [drawn(rng, str(one), moment, job.algorithm, how, job.ranks, STEPS[job.algorithm] // 3)
                   for one in range(rng.choice((1, 1, 2)))]
        case.what = {"launcher": job.launcher.name, "ranks": job.ranks, "reducer": job.reducer,
                     "algorithm": job.algorithm, "moment": moment, "how": how, "strikes": len(strikes),
                     "places": [strike.place for strike in strikes]}
        ended = run(job, strikes)
        if shop.check_result(case, job, ended):
            case.resumed += len(ended.strikes)
            _recovered(case, ended.recovery_s, (shop.reference(job).start_up_s or 0) + SUPERVISED_LIMIT_S)
    return case


def elastic(shop: Shop, rng: Random, number: int) -> Case:
    """One or two of four ranks die; the others go on to the same model."""
    case = Case("elastic", number)
    able = [launcher for launcher in shop.launchers if launcher.name == "openmpi"]
    deaths = 1 + number % 2
    with shop.job(rng, elastic=True, launcher=able[0], ranks=4, reducer=REDUCERS[number % len(REDUCERS)]) as job:
        job = replace(job, steps=LONGER[job.algorithm])
        strikes = _deaths(rng, deaths, job.algorithm, job.steps)
        case.what = {"reducer": job.reducer, "algorithm": job.algorithm, "deaths": deaths,
                     "moments": [[one.rank, one.place, one.call, round(one.delay_s, 4)] for one in strikes]}
        ended = run(job, strikes)
        if shop.check_result(case, job, ended):
            case.resumed += len(ended.strikes)
            _recovered(case, ended.recovery_s, ELASTIC_LIMIT_S)
    return case


def _deaths(rng: Random, deaths: int, algorithm: str, steps: int) -> list[Strike]:
    """Return the deaths of so many different ranks, by kill -9, at random moments after the start."""
    moments = [moment for moment in MOMENTS if moment not in ("start-up", "any")]
    found: list[Strike] = []
    for number, rank in enumerate(rng.sample(range(4), deaths)):
        strike = drawn(rng, str(number), rng.choice(moments), algorithm, "kill", 4, steps)
        while strike.rank == 0 and rank != 0:  # of what rank 0 alone does, another rank cannot die
            strike = drawn(rng, str(number), rng.choice(moments), algorithm, "kill", 4, steps)
        found.append(replace(strike, rank=rank))
    return found


def _recovered(case: Case, recovery_s: float | None, limit_s: float) -> None:
    case.recovery_s, case.recovery_limit_s = recovery_s, limit_s
    if recovery_s is not None and recovery_s > limit_s:
        case.faults.append(f"it took {recovery_s:.2f} s to the next step, the limit is {limit_s:.2f} s")
