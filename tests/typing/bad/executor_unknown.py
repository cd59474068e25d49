from packhorse import Packhorse

app = Packhorse("memory://")


@app.task(executor="greenlet")  # error: call-overload
def add(a: int) -> int:
    return a
