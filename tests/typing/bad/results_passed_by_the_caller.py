from packhorse import Packhorse, Results

app = Packhorse("memory://typed")


@app.task
async def total(results: Results, factor: int) -> int:
    return factor * len(results)


total.job(Results({}, {}), 2)  # error: arg-type call-arg call-overload
