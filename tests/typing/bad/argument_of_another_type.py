from packhorse import Packhorse

app = Packhorse("memory://")


@app.task
async def send(to: str) -> None: ...


send.enqueue(7)  # error: arg-type
