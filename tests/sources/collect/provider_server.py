"""Providers played by a local server: their documented shapes, and whatever faults a test wants.

Articles, prices and reports follow from the ticker and the day alone, so that any two collections can be compared.
"""

import hashlib
import json
import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

FINNHUB_KEY = "planted-finnhub-key-4711"
EODHD_KEY = "planted+eodhd/key=0815"  # letters that URLs write in another way
NEWS_PER_DAY = {"BUSY": 40}
CUT_AT = 250  # Finnhub gives the newest of a longer list

CONSTITUENTS = """Symbol,Security,GICS Sector,GICS Sub-Industry,Headquarters Location,Date added,CIK,Founded
MMM,3M,Industrials,Industrial Conglomerates,"Saint Paul, Minnesota",1957-03-04,66740,1902
BRK.B,Berkshire Hathaway,Financials,Multi-Sector Holdings,"Omaha, Nebraska",2010-02-16,1067983,1839
NEW,Newcomer,Industrials,Industrial Conglomerates,"Dover, Delaware",2025-01-02,1,2020
SMALL,Small,Industrials,Industrial Conglomerates,"Dover, Delaware",2001-01-02,2,2000
"""
CAPS = """Symbol,Name,Sector,Price,Market Cap
MMM,3M,Industrial Conglomerates,178.96,92293693440
BRK.B,Berkshire Hathaway,Multi-Sector Holdings,500.0,1000000000000
SMALL,Small,Industrial Conglomerates,1.0,
"""


def number(*words):
    """A number between 0 and 1 that follows from the words."""
    return int(hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def days(first, last):
    first, last = date.fromisoformat(first), date.fromisoformat(last)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def articles_of(ticker, day):
    """(moment, name) of a day's articles; none on a tenth of the days."""
    if number(ticker, str(day), "none") < 0.1:
        return []
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return [
        (start + timedelta(seconds=1800 * n + 7), f"{ticker} {day} article {n}")
        for n in range(NEWS_PER_DAY.get(ticker, 3))
    ]


def finnhub_news(query):
    found = [
        {
            "category": "company", "datetime": int(moment.timestamp()), "headline": name, "id": n, "image": "",
            "related": query["symbol"], "source": "Reuters", "summary": f"Summary of {name}.\nMore of it.",
            "url": f"https://example.com/{name.replace(' ', '-')}",
        }
        for day in days(query["from"], query["to"])
        for n, (moment, name) in enumerate(articles_of(query["symbol"], day))
    ]  # fmt: skip
    return sorted(found, key=lambda one: -one["datetime"])[:CUT_AT]


def profile(query):
    ticker = query["symbol"]
    return {
        "country": "US", "currency": "USD", "exchange": "NASDAQ NMS", "ipo": "1980-12-12", "name": f"{ticker} Inc",
        "marketCapitalization": round(1e6 * number(ticker), 2), "shareOutstanding": 4375.48, "ticker": ticker,
        "weburl": "https://example.com", "logo": "", "phone": "", "finnhubIndustry": "Technology",
    }  # fmt: skip


def metrics(query):
    ticker = query["symbol"]
    periods = ["2023-12-30", "2023-09-30", "2023-07-01"]
    quarterly = {
        name: [{"period": period, "v": round(number(ticker, name, period), 4)} for period in periods]
        for name in ("currentRatio", "eps", "netMargin")
    }
    annual = {"eps": [{"period": "2023-09-30", "v": 6.13}, {"period": "2010-09-25", "v": 0.5}]}
    return {
        "metric": {"52WeekHigh": 199.62, "beta": 1.28, "52WeekHighDate": "2023-12-14", "peTTM": None},
        "metricType": "all",
        "series": {"annual": annual, "quarterly": quarterly},
        "symbol": ticker,
    }


def reports(query):
    filed = {
        "quarterly": [("2023-12-31", "2024-02-02"), ("2023-07-01", "2023-08-04"), ("2023-07-01", "2023-09-01")],
        "annual": [("2023-09-30", "2023-11-03")],
    }[query["freq"]]
    data = [
        {"accessNumber": "0000320193-24-1", "cik": "320193", "symbol": query["symbol"], "form": "10-Q",
         "startDate": "2023-01-01 00:00:00", "endDate": f"{end} 00:00:00", "filedDate": f"{day} 00:00:00",
         "acceptedDate": f"{day} 18:03:12", "report": {"bs": [], "cf": [], "ic": []}}
        for end, day in filed
    ]  # fmt: skip
    return {"cik": "320193", "data": data, "symbol": query["symbol"]}


def chart(ticker, query):
    if ticker == "GONE":
        error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
        return {"chart": {"result": None, "error": error}}
    first, end = (datetime.fromtimestamp(int(query[name]), UTC) for name in ("period1", "period2"))
    stamps, quotes = [], {name: [] for name in ("open", "high", "low", "close", "volume")}
    adjusted = []
    for day in days(str(first.date()), str((end - timedelta(days=1)).date())):
        if day.weekday() >= 5:
            continue
        close = round(100 + 10 * number(ticker, str(day)), 4)
        stamps.append(int(datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC).timestamp()))
        for name, factor in (("open", 0.99), ("high", 1.02), ("low", 0.98), ("close", 1.0)):
            quotes[name].append(close * factor)
        quotes["volume"].append(int(1e6 * number(ticker, str(day), "volume")))
        adjusted.append(close * 0.98)
    quotes["close"][2] = None  # a day that Yahoo has no prices of
    paid = {str(stamps[1]): {"amount": 0.24, "date": stamps[1]}}
    split = {str(stamps[3]): {"date": stamps[3], "numerator": 4.0, "denominator": 1.0, "splitRatio": "4:1"}}
    result = {
        "meta": {"currency": "USD", "symbol": ticker, "exchangeTimezoneName": "America/New_York"},
        "timestamp": stamps,
        "events": {"dividends": paid, "splits": split},
        "indicators": {"quote": [quotes], "adjclose": [{"adjclose": adjusted}]},
    }
    return {"chart": {"result": [result], "error": None}}


def eodhd_news(query):
    ticker = query["s"].removesuffix(".US")
    found = [
        {
            "date": moment.strftime("%Y-%m-%dT%H:%M:%S+00:00"), "title": name, "content": f"All of {name}.",
            "link": f"https://news.example.com/{name.replace(' ', '-')}", "symbols": [query["s"]], "tags": [],
            "sentiment": {"polarity": 0.9, "neg": 0.0, "neu": 0.9, "pos": 0.1},
        }
        for day in days(query["from"], query["to"])
        for moment, name in articles_of(ticker, day)
    ]  # fmt: skip
    found.sort(key=lambda one: one["date"], reverse=True)
    return found[int(query["offset"]) :][: int(query["limit"])]


def answer(path, query):
    """The right answer to a request, None where there is no such place."""
    place = path.strip("/")
    ways = {
        "finnhub/company-news": finnhub_news, "finnhub/stock/profile2": profile, "finnhub/stock/metric": metrics,
        "finnhub/stock/financials-reported": reports, "eodhd/news": eodhd_news,
    }  # fmt: skip
    if place in ways:
        return json.dumps(ways[place](query))
    if place.startswith("yahoo/v8/finance/chart/"):
        return json.dumps(chart(place.rpartition("/")[2], query))
    if place.startswith("sp500/"):
        return CAPS if "financials" in place else CONSTITUENTS
    return None


class ProviderServer:
    """Serves all providers; ``fault(url, attempt)`` names what goes wrong with a request, None for nothing.

    Attributes:
        delivered: right answers that were sent whole, by URL without the key.
        asked: requests, in the same way.
        before: called with the number of each request before it is answered, and when half of an answer is out.
    """

    def __init__(self):
        self.fault = lambda url, attempt: None
        self.before = lambda number, stage: None
        self.delivered, self.asked, self.agents = Counter(), Counter(), set()
        self.slow_s = 0.5
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                try:
                    server.handle(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # the collector was killed

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def base_urls(self):
        return {name: f"{self.url}/{name}" for name in ("finnhub", "eodhd", "yahoo", "sp500")}

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def handle(self, handler):
        parts = urlsplit(handler.path)
        query = dict(parse_qsl(parts.query))
        key = query.pop("api_token", None) or handler.headers.get("X-Finnhub-Token")
        url = f"{parts.path}?{'&'.join(f'{name}={value}' for name, value in sorted(query.items()))}"
        with self.lock:
            self.asked[url] += 1
            attempt, number = self.asked[url], sum(self.asked.values())
            self.agents.add(handler.headers.get("User-Agent"))
        self.before(number, "asked")
        wanted = {"finnhub": FINNHUB_KEY, "eodhd": EODHD_KEY}.get(parts.path.split("/")[1])
        if key != wanted:
            return send(handler, 401, json.dumps({"error": f"Invalid API key {key}"}).encode())
        found = answer(parts.path, query)
        if found is None:
            return send(handler, 404, b'{"error": "no such place"}')
        fault = self.fault(url, attempt)
        if fault is not None:
            return self.fail(handler, fault, found.encode(), key)
        body = found.encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        self.before(number, "half")
        handler.wfile.write(body[len(body) // 2 :])
        with self.lock:
            self.delivered[url] += 1

    def fail(self, handler, fault, body, key):
        half = body[: len(body) // 2]
        if fault == "cut":  # fewer bytes than promised
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(half)
            handler.close_connection = True
        elif fault == "slow":
            threading.Event().wait(self.slow_s)
            send(handler, 200, body)
        elif fault == "close":
            handler.close_connection = True
        elif isinstance(fault, tuple):  # a status and its Retry-After
            send(handler, fault[0], b'{"error": "API limit reached."}', {"Retry-After": fault[1]})
        elif isinstance(fault, int):  # errors that quote the request, as servers do
            send(handler, fault, f'{{"error": "refused ?api_token={key}&token={key}"}}'.encode())
        else:
            bodies = {
                "truncated": half, "empty": b"", "html": b"<html>Will be right back</html>",
                "other": b'{"error": "An error occurred"}', "text": b'"fine"', "bytes": b"\xff\xfe\x00{",
                "deep": b"[" * 100000, "null": b"null",
            }  # fmt: skip
            send(handler, 200, bodies[fault])


def send(handler, status, body, headers=None):
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
